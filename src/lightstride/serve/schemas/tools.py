"""Functions that a model may call, and calls it has made."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from lightstride.serve.schemas.base import Strict

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A function among the tools of a request."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """Which function."""

    name: Name


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """A function and the arguments it was called with, as JSON in a text."""

    name: Name
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made in an earlier turn."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
