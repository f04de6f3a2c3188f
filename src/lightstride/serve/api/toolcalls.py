"""Calls of tools in an answer's text: Hermes' `<tool_call>{...}</tool_call>` and Llama's bare JSON.

Text before a call is shown as it comes; from where a call may begin it waits until the end.
"""

import json
import secrets
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from lightstride.serve.faults import bad
from lightstride.serve.schemas.tools import NamedTool, Tool, ToolChoice

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Call = dict[str, object]


class CallReader:
    """The text of one answer, parted into what is said and what is called."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.held = ""
        self.is_start = True
        self.is_call = False

    def feed(self, text: str) -> str:
        """The text to show now."""
        self.held += text
        if self.is_call:
            return ""
        if self.is_start:
            if not self.held.strip():
                return ""
            self.is_call = self.held.lstrip().startswith("{")
            self.is_start = False
            if self.is_call:
                return ""
        place = self.held.find(OPEN)
        self.is_call = place >= 0
        cut = place if self.is_call else len(self.held) - waiting(self.held)
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def finish(self) -> tuple[str, list[Call]]:
        """At the end: text that is no call after all, and the calls."""
        held, self.held = self.held, ""
        calls = read_calls(held, self.names) if self.is_call else []
        return ("", calls) if calls else (held, [])


def waiting(text: str) -> int:
    """Length of the end of the text that may be the start of a call."""
    most = min(len(text), len(OPEN) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(OPEN[:n])), 0)


def read_calls(text: str, names: frozenset[str]) -> list[Call]:
    """The calls that a text consists of; none where any part of it is something else."""
    decoder = json.JSONDecoder()
    calls: list[Call] = []
    rest = text.strip()
    while rest:
        rest = rest.removeprefix(OPEN).lstrip()
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        call = as_call(value, names)
        if call is None:
            return []
        calls.append(call)
        rest = rest[end:].lstrip().removeprefix(CLOSE).lstrip("; \n\t")
    return calls


def as_call(value: object, names: frozenset[str]) -> Call | None:
    """A call as OpenAI writes it, or None where the value is no call of a known tool."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def forced_schema(
    tools: Sequence[Tool], choice: ToolChoice | None
) -> Mapping[str, JsonValue] | None:
    """The schema of an answer that must be a call; None where it need not be one.

    ApiError where tools contradict each other.
    """
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    elif choice != "required":
        return None
    definitions: dict[str, JsonValue] = {}
    calls: list[JsonValue] = []
    for tool in tools:
        arguments = dict(tool.function.parameters or {"type": "object"})
        own = arguments.pop("$defs", {})
        if not isinstance(own, dict):
            raise bad("$defs is no object", "tools")
        for name, schema in own.items():
            if definitions.setdefault(name, schema) != schema:
                raise bad(f"two tools define {name!r} differently in $defs", "tools")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions}
