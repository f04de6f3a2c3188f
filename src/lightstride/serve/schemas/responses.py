"""`/v1/responses`, for text: OpenAI's newer shape of a chat, without anything that is stored."""

from typing import Annotated, Literal

from pydantic import Field

from lightstride.serve.schemas.base import Sampling, Strict
from lightstride.serve.schemas.formats import FlatFormat


class InputText(Strict):
    """A part of what was said, by either side."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[object] | None = None
    logprobs: list[object] | None = None


class InputMessage(Strict):
    """One message of the conversation; an earlier output can be given back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class TextOptions(Strict):
    """What the text must look like."""

    format: FlatFormat | None = None


class ResponseRequest(Sampling):
    """A request for one answer."""

    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    store: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
