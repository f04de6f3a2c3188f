"""What an answer must look like: any text, any JSON object, or JSON of a schema."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from lightstride.serve.schemas.base import Strict


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema, with the name that OpenAI asks for."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None
    """The answer is of the schema with either."""


class SchemaFormat(Strict):
    """JSON of a schema, as chat asks for it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchemaFormat(NamedSchema):
    """JSON of a schema, as responses ask for it."""

    type: Literal["json_schema"]


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]
FlatFormat = Annotated[TextFormat | ObjectFormat | FlatSchemaFormat, Field(discriminator="type")]
ANY_OBJECT: dict[str, JsonValue] = {"type": "object"}


def wanted_schema(
    chosen: TextFormat | ObjectFormat | SchemaFormat | FlatSchemaFormat | None,
) -> dict[str, JsonValue] | None:
    """The JSON schema that an answer must be of, or None where any text will do."""
    if isinstance(chosen, ObjectFormat):
        return ANY_OBJECT
    if isinstance(chosen, SchemaFormat):
        return chosen.json_schema.schema_
    return chosen.schema_ if isinstance(chosen, FlatSchemaFormat) else None
