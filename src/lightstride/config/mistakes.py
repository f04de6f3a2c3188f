"""What the parser says of a flag, in our words: what was given, and what is allowed."""

import re
from collections.abc import Sequence
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from lightstride.config.base import Command

VALUE = re.compile(r"Error parsing (--[\w-]+)")
CHOICE = re.compile(r"invalid choice .* for argument '(?:-\w, )?(--[\w-]+)'")
WANTED = {int: "a whole number", float: "a number", str: "a text"}
SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}


def in_our_words(said: str, command: type[Command] | None, arguments: Sequence[str]) -> str:
    """The parser's message, or ours where it is about the value of a flag of the command."""
    found = VALUE.search(said) or CHOICE.search(said)
    hints = {} if command is None else get_type_hints(command)
    field = "" if found is None else found[1].removeprefix("--").replace("-", "_")
    if found is None or field not in hints:
        return said
    given = given_to(found[1], arguments)
    return f"{found[1]} {given} is not allowed: it must be {allowed(hints[field])}"


def given_to(flag: str, arguments: Sequence[str]) -> str:
    """The words behind a flag, up to the next."""
    words: list[str] = []
    inside = False
    for word in arguments:
        name, equals, value = word.partition("=")
        if inside and re.match(r"-+[a-zA-Z]", word):
            break
        if inside:
            words.append(word)
        if name == flag:
            inside = True
            words += [value] if equals else []
    return " ".join(words) or "''"


def allowed(kind: object) -> str:
    """The values of a field's type, in words."""
    if get_origin(kind) in (Union, UnionType):
        return allowed(next(each for each in get_args(kind) if each is not type(None)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is Literal:
            return f"one or more of {', '.join(map(str, get_args(inner)))}, blanks between them"
        return f"{SEVERAL[inner]}, blanks between them"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return WANTED.get(kind, "a value of another kind")  # type: ignore[call-overload,no-any-return]
