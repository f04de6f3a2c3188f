"""A model's own chat template, rendered within limits of time, size and what it may call.

Templates are programs in Jinja that come with a checkpoint.  transformers runs them in a sandbox,
which keeps them from the system but lets them loop for hours or build strings of gigabytes.  Here
the same language runs in the same sandbox, and ends in one clear line when it goes too far.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from lightstride.errors import ModelError

MAX_SECONDS = 5.0
MAX_CHARACTERS = 1 << 22
"""Of the rendered text, and of any string made on the way."""
MAX_INDENT = 100
"""Characters by which JSON may be indented at each depth."""
MAX_GROWTH = 1 << 28
"""Of the product of the lengths of a call's texts."""
MAX_NUMBER = 1_000_000
"""Of an argument that a string method, a filter or a repetition takes."""
LINES_BETWEEN_LOOKS = 256


class LimitError(TemplateError):
    """A template went too far."""


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 wants it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' sandbox, in which nothing can be made that is too large."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self.filters = {name: limited(call) for name, call in self.filters.items()}
        self.filters["tojson"] = to_json
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """The result of an operator that could make something large."""
        if operator == "*":
            check_product(left, right)
        elif operator == "**" and (size(left) > MAX_NUMBER or size(right) > 64):
            raise LimitError(f"{left!r:.20} ** {right!r:.20} is too large")
        elif operator == "%" and isinstance(left, str):
            check_widths(left)
        elif operator == "+" and length(left) + length(right) > MAX_CHARACTERS:
            raise LimitError("a text or list grows too long")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: object, *arguments: object, **named: object) -> object:
        """What a function or method answers, given arguments that are not too large."""
        check_arguments(arguments, named)
        owner = getattr(called, "__self__", None)
        check_growth([owner, *arguments, *named.values()])
        return super().call(context, called, *arguments, **named)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """`str.format` in the sandbox, for patterns that do not ask for too much space."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str):
            check_widths(owner)
        return super().wrap_str_format(value)


def limited(call: Callable[..., object]) -> Callable[..., object]:
    """A filter that refuses numbers that are too large."""

    @functools.wraps(call)
    def checked(*arguments: object, **named: object) -> object:
        check_arguments(arguments, named)
        check_growth([*arguments, *named.values()])
        if arguments and isinstance(arguments[0], str) and call.__name__ == "do_format":
            check_widths(arguments[0])
        return call(*arguments, **named)

    return checked


def check_arguments(arguments: Sequence[object], named: Mapping[str, object]) -> None:
    """Raise LimitError for a number that is too large."""
    for argument in (*arguments, *named.values()):
        if isinstance(argument, int | float) and abs(argument) > MAX_NUMBER:
            raise LimitError(f"the number {argument!r:.20} is too large")


def check_growth(values: Sequence[object]) -> None:
    """Raise LimitError where texts or lists could multiply, as in replacing or joining."""
    product = 1
    for value in values:
        product *= max(1, length(value))
    if product > MAX_GROWTH:
        raise LimitError("texts of this length cannot be replaced or joined here")


def check_product(left: object, right: object) -> None:
    """Raise LimitError where a repetition or a product is too large."""
    for repeated, times in ((left, right), (right, left)):
        if isinstance(times, int) and length(repeated) * times > MAX_CHARACTERS:
            raise LimitError(f"a text or list repeated {times:,} times is too long")
    if size(left) > 1e30 or size(right) > 1e30:
        raise LimitError("a product is too large")


def check_widths(pattern: str) -> None:
    """Raise LimitError for a format with a width of seven digits or more."""
    digits = 0
    if "%" in pattern or "{" in pattern:
        for character in pattern:
            digits = digits + 1 if character.isdigit() else 0
            if digits > 6:
                raise LimitError("a format asks for too much space")


def length(value: object) -> int:
    """Characters or entries of a value; 0 for what has none."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def size(value: object) -> float:
    """Magnitude of a number; 0 for anything else."""
    return abs(value) if isinstance(value, int | float) else 0


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates write it: not escaped for HTML."""
    if max(size(indent), length(indent)) > MAX_INDENT:
        raise LimitError(f"JSON cannot be indented by more than {MAX_INDENT} characters")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def raise_exception(message: object) -> None:
    """Let a template refuse its messages."""
    raise TemplateError(str(message))


def strftime_now(pattern: str) -> str:
    """The time now, as a template wants it written."""
    return datetime.now().strftime(pattern)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """The text of a conversation, by the tokenizer's template.

    Raises ModelError where the template is broken, refuses the messages, or goes too far.
    """
    name = tokenizer.name_or_path
    given = None if tools is None else [dict(tool) for tool in tools]
    try:
        with deadline(MAX_SECONDS):
            source = tokenizer.get_chat_template(None, given)
            pieces, total = [], 0
            for piece in compiled(source).generate(
                **tokenizer.special_tokens_map,
                messages=[dict(message) for message in messages],
                tools=given,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            ):
                pieces.append(piece)
                total += len(piece)
                if total > MAX_CHARACTERS:
                    raise LimitError(f"its text is longer than {MAX_CHARACTERS:,} characters")
    except Exception as error:  # a template can raise whatever Python can
        text = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ModelError(f"the chat template of {name} cannot be used: {text}") from error
    return "".join(pieces)


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    """A template ready to run."""
    return LimitedEnvironment().from_string(source)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise LimitError inside the block once so much time has passed."""
    end, lines = time.monotonic() + seconds, 0

    def look(_frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401, sys.settrace's own type
        nonlocal lines
        lines += 1
        if lines % LINES_BETWEEN_LOOKS == 0 and time.monotonic() > end:
            raise LimitError(f"it runs for more than {seconds:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
