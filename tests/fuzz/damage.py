"""Hypothesis strategies that damage a file: as bytes, as JSON, as a safetensors or GGUF header.

A strategy makes a *function* from the undamaged bytes to damaged ones, with a repr that tells what
it does, so that hypothesis can shrink it and a failure can be read.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    256,
    65_537,
    2**31,
    2**63,
    10**30,
    -(10**9),
    0.5,
    -0.5,
    1.5,
    1e308,
    "",
    "x",
    "0",
    "../x",
    "/etc/passwd",
    "a\x00b",
    "\ud83d\ude00",
    "x" * 5000,
    "float64",
    "torch.float32",
    [],
    {},
    [[]],
    [None],
    ["x"],
    [0],
    [1, 2],
    [-1],
    {"a": {"b": 1}},
    {"": None},
    [1e308],
    [10**30],
]


@dataclass(frozen=True)
class Damage:
    """One way to spoil bytes; `steps` are applied in turn."""

    steps: tuple[tuple[Any, ...], ...]

    def __call__(self, data: bytes) -> bytes:
        for name, *arguments in self.steps:
            data = STEPS[name](data, *arguments)
        return data

    def __repr__(self) -> str:
        return " then ".join(f"{n}{a!r:.120}" for n, *a in self.steps)


def flip(data: bytes, place: float, value: int) -> bytes:
    if not data:
        return data
    at = min(int(place * len(data)), len(data) - 1)
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


def flip_in_head(data: bytes, place: float, value: int) -> bytes:
    return flip(data[:512], place, value) + data[512:]


def truncate(data: bytes, place: float) -> bytes:
    return data[: int(place * len(data))]


def insert(data: bytes, place: float, what: bytes) -> bytes:
    at = int(place * len(data))
    return data[:at] + what + data[at:]


def replace(data: bytes, what: bytes) -> bytes:
    return what


def on_json(change: Callable[..., Any]) -> Callable[..., bytes]:
    def step(data: bytes, *arguments: Any) -> bytes:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return data
        return dumped(change(document, *arguments))

    return step


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a document, containers first."""
    found = []
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document[:50])
    for key, value in items:
        found.append((*path, key))
        found += places(value, (*path, key))
    return found


def chosen(document: Any, place: float) -> tuple[Any, ...] | None:
    paths = places(document)
    return paths[min(int(place * len(paths)), len(paths) - 1)] if paths else None


def parent(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def put(document: Any, place: float, value: Any) -> Any:
    path = chosen(document, place)
    if path is None:
        return value
    parent(document, path)[path[-1]] = value
    return document


def delete(document: Any, place: float) -> Any:
    path = chosen(document, place)
    if path is not None:
        del parent(document, path)[path[-1]]
    return document


def swap(document: Any, place: float, other: float) -> Any:
    one, two = chosen(document, place), chosen(document, other)
    if one is None or two is None or one == two[: len(one)] or two == one[: len(two)]:
        return document
    a, b = parent(document, one), parent(document, two)
    a[one[-1]], b[two[-1]] = b[two[-1]], a[one[-1]]
    return document


def add(document: Any, place: float, value: Any) -> Any:
    path = chosen(document, place)
    holder = document if path is None else parent(document, path)
    if isinstance(holder, dict):
        holder[f"{path[-1] if path else ''}x"] = value
    elif isinstance(holder, list):
        holder.append(value)
    return document


def wrap(document: Any) -> Any:
    return [document]


def negate(document: Any, place: float) -> Any:
    path = chosen(document, place)
    if path is not None and isinstance(parent(document, path)[path[-1]], int | float):
        parent(document, path)[path[-1]] *= -1
    return document


def deepen(data: bytes, depth: int) -> bytes:
    return b"[" * depth + data + b"]" * depth


def deepen_inside(data: bytes, place: float, depth: int) -> bytes:
    try:
        text = dumped(put(json.loads(data), place, "DEEP"))
    except (ValueError, RecursionError):
        return data
    return text.replace(b'"DEEP"', b"[" * depth + b"]" * depth)


def header(change: Callable[..., bytes]) -> Callable[..., bytes]:
    """A step on the JSON header of a safetensors file, whose length is kept true."""

    def step(data: bytes, *arguments: Any) -> bytes:
        if len(data) < 8:
            return data
        (length,) = struct.unpack("<Q", data[:8])
        text = change(data[8 : 8 + length], *arguments)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return step


def header_length(data: bytes, length: int) -> bytes:
    return struct.pack("<Q", length) + data[8:]


def body(data: bytes, place: float, what: bytes) -> bytes:
    if len(data) < 8:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length
    at = start + int(place * max(0, len(data) - start - len(what)))
    return data[:at] + what + data[at + len(what) :]


def word(data: bytes, place: float, value: int) -> bytes:
    """Eight bytes near the start replaced: lengths and counts of binary formats."""
    at = int(place * min(len(data), 4000)) // 4 * 4
    return data[:at] + struct.pack("<Q", value % 2**64) + data[at + 8 :]


JSON_STEPS = {
    "put": on_json(put),
    "delete": on_json(delete),
    "swap": on_json(swap),
    "add": on_json(add),
    "wrap": on_json(wrap),
    "negate": on_json(negate),
    "deepen": deepen,
    "deepen_inside": deepen_inside,
}
STEPS: dict[str, Callable[..., bytes]] = {
    "flip": flip,
    "flip_in_head": flip_in_head,
    "truncate": truncate,
    "insert": insert,
    "replace": replace,
    "header_length": header_length,
    "body": body,
    "word": word,
    **JSON_STEPS,
    **{f"header_{name}": header(step) for name, step in {**JSON_STEPS, "flip": flip}.items()},
}

share = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
junk = st.sampled_from(JUNK)
some_bytes = st.sampled_from(
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xe1",
        b"{}",
        b"[]",
        b"null",
        b"nan",
        b"\n",
        b"\\ud800",
        b"[" * 100_000,
        b"\x80" * 64,
    ]
)
nan_bytes = st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 8, b"\x00" * 16])

byte_steps = st.one_of(
    st.tuples(st.just("flip"), share, st.integers(1, 255)),
    st.tuples(st.just("truncate"), share),
    st.tuples(st.just("insert"), share, some_bytes),
    st.tuples(st.just("replace"), some_bytes),
)


def json_steps(prefix: str = "") -> st.SearchStrategy[tuple[Any, ...]]:
    def named(name: str) -> st.SearchStrategy[str]:
        return st.just(prefix + name)

    depth = st.sampled_from([50, 900, 5000, 100_000])
    value = st.tuples(named("put"), share, junk)
    return st.one_of(
        value,
        value,
        value,
        st.tuples(named("delete"), share),
        st.tuples(named("swap"), share, share),
        st.tuples(named("add"), share, junk),
        st.tuples(named("negate"), share),
        st.tuples(named("wrap")),
        st.tuples(named("deepen"), depth),
        st.tuples(named("deepen_inside"), share, depth),
    )


def damages(*steps: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[Damage]:
    """One to three steps of these kinds."""
    return st.lists(st.one_of(*steps), min_size=1, max_size=3).map(lambda s: Damage(tuple(s)))


json_damage = damages(json_steps(), json_steps(), json_steps(), byte_steps)
byte_damage = damages(byte_steps)
safetensors_damage = damages(
    json_steps("header_"),
    byte_steps,
    st.tuples(st.just("body"), share, nan_bytes),
    st.tuples(st.just("header_length"), st.sampled_from([0, 1, 2**31, 2**63, 100])),
    st.tuples(st.just("header_flip"), share, st.integers(1, 255)),
)
gguf_damage = damages(
    st.tuples(st.just("flip_in_head"), share, st.integers(1, 255)),
    st.tuples(st.just("word"), share, st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 10**9])),
    byte_steps,
)
TEMPLATES = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 1/0 }}",
    "{{ raise_exception('no') }}",
    "{{ undefined.x }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 2000000000 }}",
    "{{ 'x'/format(1,2) }}",
    "{{ messages",
    "{% endfor %}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ 10**10**10 }}",
    "{% set x = 'a' * 10000 %}{% for i in range(10000) %}{{ x }}{% endfor %}",
    "{{ messages.pop() }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'ab'|center(999999999) }}",
    "{{ (('a,' * 9999).split(',') * 9999)|join }}",
    "{{ range(99999)|list * 99999 }}",
]
template_damage = damages(
    st.tuples(st.just("replace"), st.sampled_from(TEMPLATES).map(str.encode)),
    st.tuples(st.just("insert"), share, st.sampled_from(TEMPLATES).map(str.encode)),
    byte_steps,
)
