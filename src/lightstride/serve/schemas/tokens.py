"""`/tokenize` and `/detokenize`."""

from typing import Annotated

from pydantic import Field, model_validator

from lightstride.serve.schemas.base import Strict, Text
from lightstride.serve.schemas.chat import Message


class TokenizeRequest(Strict):
    """A text or a conversation to be turned into tokens."""

    model: Text | None = None
    """May be left out where one model is served."""
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    """Whether those around a text are added; a conversation's template has its own."""

    @model_validator(mode="after")
    def one_of_both(self) -> "TokenizeRequest":
        """The request itself; refused unless it has a text or a conversation."""
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """Tokens to be turned into text."""

    model: Text | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
