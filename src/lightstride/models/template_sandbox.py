"""The sandbox of chat templates: transformers' own, in which nothing can grow too large.

What runs in C cannot be interrupted, so its inputs are bounded: every list, text and call is
weighed (texts by their length, lists by all they hold) before it is used and after it is made.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 1 << 22
"""Of the rendered text, and of all that a value on the way holds."""
MAX_INDENT = 100
"""Characters by which JSON may be indented at each depth."""
MAX_GROWTH = 1 << 27
"""Of the product of the sizes of a call's arguments."""
MAX_NUMBER = 1_000_000
"""Of an argument that a string method, a filter or a repetition takes."""
CONTAINERS = (list, tuple, dict)


class LimitError(TemplateError):
    """A template went too far."""


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 wants it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Weighing(NodeTransformer):
    """Literals of lists and dicts are weighed; `a ~ b` is the filter `join`, which is."""

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802, as jinja2 wants it
        return weighed_node(self.generic_visit(node), node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else weighed_node(node, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return weighed_node(self.generic_visit(node), node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


def weighed_node(node: nodes.Node, old: nodes.Node) -> nodes.Node:
    """A literal, weighed where it is made."""
    return nodes.Filter(node, "weighed", [], [], None, None, lineno=old.lineno)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' sandbox, in which nothing can be made that is too large."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            finalize=weighed,
        )
        self.filters["tojson"] = to_json
        self.filters = {name: limited(call) for name, call in self.filters.items()}
        self.filters["weighed"] = weighed
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Weighing().visit(super()._parse(source, name, filename))
        return template

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Pieces of a block's or macro's text as one."""
        found = list(pieces)
        if sum(map(len, found)) > MAX_CHARACTERS:
            raise LimitError(f"a text is longer than {MAX_CHARACTERS:,} characters")
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """The result of an operator that could make something large."""
        if operator == "*":
            check_product(left, right)
        elif operator == "**" and (size(left) > MAX_NUMBER or size(right) > 64):
            raise LimitError(f"{left!r:.20} ** {right!r:.20} is too large")
        elif operator == "%" and isinstance(left, str):
            check_widths(left)
            check_growth([left, right])
        elif operator == "+" and weight(left) + weight(right) > MAX_CHARACTERS:
            raise LimitError("a text or list grows too long")
        return weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: object, *arguments: object, **named: object) -> object:
        """What a function or method answers, given arguments that are not too large."""
        check_arguments(arguments, named)
        owner = getattr(called, "__self__", None)
        check_growth([owner, *arguments, *named.values()])
        return weighed(super().call(context, called, *arguments, **named))

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """`str.format` in the sandbox, for patterns that do not ask for too much space."""
        wrapped = super().wrap_str_format(value)
        owner = getattr(value, "__self__", None)
        if wrapped is None or not isinstance(owner, str):
            return wrapped
        check_widths(owner)

        def checked(*arguments: object, **named: object) -> str:
            check_growth([owner, *arguments, *named.values()])
            return wrapped(*arguments, **named)

        return checked


def limited(call: Callable[..., object]) -> Callable[..., object]:
    """A filter that refuses numbers and values that are too large."""

    @functools.wraps(call)
    def checked(*arguments: object, **named: object) -> object:
        check_arguments(arguments, named)
        check_growth([*arguments, *named.values()])
        if arguments and isinstance(arguments[0], str) and call.__name__ == "do_format":
            check_widths(arguments[0])
        return weighed(call(*arguments, **named))

    return checked


def weight(value: object) -> int:
    """Characters and entries that a value holds; 0 for what holds none, counted to the limit."""
    total, left = 0, [value]
    while left and total <= MAX_CHARACTERS:
        each = left.pop()
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, CONTAINERS):
            total += len(each)
            left += each.keys() if isinstance(each, dict) else each
            left += each.values() if isinstance(each, dict) else ()
    return total


def weighed(value: Any) -> Any:  # noqa: ANN401, it is what a template has
    """The value itself; LimitError for one that holds too much."""
    if isinstance(value, (str, *CONTAINERS)) and weight(value) > MAX_CHARACTERS:
        raise LimitError(f"a text or list holds more than {MAX_CHARACTERS:,} characters")
    return value


def check_arguments(arguments: Sequence[object], named: Mapping[str, object]) -> None:
    """Raise LimitError for a number that is too large."""
    for argument in (*arguments, *named.values()):
        if isinstance(argument, int | float) and abs(argument) > MAX_NUMBER:
            raise LimitError(f"the number {argument!r:.20} is too large")


def check_growth(values: Sequence[object]) -> None:
    """Raise LimitError where texts could multiply, as in replacing, joining or formatting.

    A text can repeat all that its arguments hold; lists and dicts, as in `messages | selectattr`,
    repeat nothing of what they hold.
    """
    sized = [value for value in values if isinstance(value, (str, *CONTAINERS))]
    measure = weight if sized and isinstance(sized[0], str) else len
    product = 1
    for value in sized:
        product *= max(1, measure(value))
    if product > MAX_GROWTH:
        raise LimitError("texts of this length cannot be replaced or joined here")


def check_product(left: object, right: object) -> None:
    """Raise LimitError where a repetition or a product is too large."""
    for repeated, times in ((left, right), (right, left)):
        if isinstance(times, int) and weight(repeated) * times > MAX_CHARACTERS:
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
    if max(size(indent), weight(indent)) > MAX_INDENT:
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
