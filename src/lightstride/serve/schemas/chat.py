"""`/v1/chat/completions`: a conversation in, the assistant's next message out."""

from typing import Annotated, Literal

from pydantic import Field

from lightstride.serve.schemas.base import Strict, Writing
from lightstride.serve.schemas.formats import ResponseFormat
from lightstride.serve.schemas.tools import Tool, ToolCall, ToolChoice


class TextPart(Strict):
    """A part of a message; other kinds than text are not read here."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemMessage(Strict):
    """What the model should be like."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Strict):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Strict):
    """What the model said before; as it came, with all its fields."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    annotations: list[object] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Strict):
    """What a tool gave back."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(max_length=256)]


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class ChatRequest(Writing):
    """A request for the assistant's next message."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None


def plain_text(content: Content | None) -> str:
    """The text of a message."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
