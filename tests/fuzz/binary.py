"""Steps that know safetensors and GGUF: a change in one place, with the rest kept true."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from fuzz.damage import JSON_STEPS, STEPS, flip

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


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
    at = start + int(place * max(0, len(data) - start - len(what))) // 4 * 4
    return data[:at] + what + data[at + len(what) :]


def tensor(text: bytes, draw: int, change: str) -> bytes:
    """One tensor told of otherwise, in a header that stays possible."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(document, dict):
        return text
    names = sorted(name for name in document if name != "__metadata__")
    if not names or not all(isinstance(document[name], dict) for name in names):
        return text
    chance = random.Random(draw)
    one, two = chance.choice(names), chance.choice(names)
    try:
        TENSOR_CHANGES[change](document, one, two, chance)
    except (KeyError, TypeError, ValueError, IndexError):
        return text
    return json.dumps(document).encode()


def other_type(document: Any, one: str, two: str, chance: random.Random) -> None:
    width = WIDTHS[document[one]["dtype"]]
    same = [name for name, size in WIDTHS.items() if size == width]
    document[one]["dtype"] = chance.choice([*same, "F8_E4M3", "C64", "I4", "f32", ""])


def half_type(document: Any, one: str, two: str, chance: random.Random) -> None:
    assert document[one]["dtype"]
    document[one]["dtype"] = "F16"
    document[one]["shape"][-1] *= 2


def reshape(document: Any, one: str, two: str, chance: random.Random) -> None:
    shape = document[one]["shape"]
    count = 1
    for extent in shape:
        count *= extent
    document[one]["shape"] = chance.choice(
        [[count], [1, *shape], [*shape, 1], shape[::-1], [count, 1], [1] * 70 + shape, []]
    )


def zero(document: Any, one: str, two: str, chance: random.Random) -> None:
    start = document[one]["data_offsets"][0]
    document[one]["data_offsets"] = [start, start]
    document[one]["shape"] = chance.choice([[0], [0, *document[one]["shape"]], [2**40, 0]])


def overlap(document: Any, one: str, two: str, chance: random.Random) -> None:
    document[one] = {**document[two]}


def exchange(document: Any, one: str, two: str, chance: random.Random) -> None:
    document[one], document[two] = document[two], document[one]


def shift(document: Any, one: str, two: str, chance: random.Random) -> None:
    by = chance.choice([1, -1, 4, 2**20, 2**62])
    document[one]["data_offsets"] = [each + by for each in document[one]["data_offsets"]]


def lose(document: Any, one: str, two: str, chance: random.Random) -> None:
    del document[one]


def more(document: Any, one: str, two: str, chance: random.Random) -> None:
    name = chance.choice(
        ["x", "model.layers.9.mlp.up_proj.weight", f"{one}\n", "\x1b[31m", f"{one}x"]
    )
    document[name] = {**document[one]}


def move(document: Any, one: str, two: str, chance: random.Random) -> None:
    document[one.replace("layers.0", "layers.7").replace("weight", "bias")] = document.pop(one)


TENSOR_CHANGES: dict[str, Callable[[Any, str, str, random.Random], None]] = {
    change.__name__: change
    for change in (
        other_type,
        half_type,
        reshape,
        zero,
        overlap,
        exchange,
        shift,
        lose,
        more,
        move,
    )
}

PLAIN = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def gguf_places(data: bytes) -> list[tuple[str, int, int]]:
    """Where the numbers and texts of a GGUF head stand: (kind, offset, size)."""
    found: list[tuple[str, int, int]] = [("version", 4, 4), ("tensors", 8, 8), ("keys", 16, 8)]
    at = 24

    def number(kind: str, size: int) -> int:
        nonlocal at
        found.append((kind, at, size))
        at += size
        if at > len(data):
            raise IndexError(kind)
        return int.from_bytes(data[at - size : at], "little")

    def text() -> None:
        nonlocal at
        length = number("length", 8)
        found.append(("text", at, length))
        at += length

    def value(kind: int) -> None:
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number("inner", 4), number("count", 8)
            for _ in range(count):
                value(inner)
        else:
            number("value", PLAIN[kind])

    tensors, keys = (int.from_bytes(data[place : place + 8], "little") for place in (8, 16))
    for _ in range(keys):
        text()
        value(number("type", 4))
    for _ in range(tensors):
        text()
        for _ in range(number("dimensions", 4)):
            number("extent", 8)
        number("quantization", 4)
        number("offset", 8)
    return found


def gguf_number(data: bytes, draw: int, kind: str, new: int) -> bytes:
    """A number of one kind in the head replaced."""
    try:
        places = [each for each in gguf_places(data) if each[0] == kind]
    except (KeyError, IndexError, RecursionError, MemoryError):
        return data
    if not places:
        return data
    _, at, size = random.Random(draw).choice(places)
    return data[:at] + (new % 256**size).to_bytes(size, "little") + data[at + size :]


def gguf_text(data: bytes, draw: int, what: bytes) -> bytes:
    """A text in the head written over."""
    try:
        places = [each for each in gguf_places(data) if each[0] == "text" and each[2]]
    except (KeyError, IndexError, RecursionError, MemoryError):
        return data
    if not places:
        return data
    _, at, size = random.Random(draw).choice(places)
    new = (what * size)[:size] if what else data[at : at + size][::-1]
    return data[:at] + new + data[at + size :]


def gguf_rename(data: bytes, draw: int, longer: bytes) -> bytes:
    """A text in the head replaced by another, its length kept true."""
    try:
        places = [each for each in gguf_places(data) if each[0] == "text"]
    except (KeyError, IndexError, RecursionError, MemoryError):
        return data
    if not places:
        return data
    _, at, size = random.Random(draw).choice(places)
    return data[: at - 8] + len(longer).to_bytes(8, "little") + longer + data[at + size :]


GGUF_KINDS = (
    "version",
    "tensors",
    "keys",
    "length",
    "inner",
    "count",
    "value",
    "type",
    "dimensions",
    "extent",
    "quantization",
    "offset",
)

STEPS |= {
    "header_length": header_length,
    "body": body,
    **{f"header_{name}": header(step) for name, step in {**JSON_STEPS, "flip": flip}.items()},
    "header_tensor": header(tensor),
    "gguf_number": gguf_number,
    "gguf_text": gguf_text,
    "gguf_rename": gguf_rename,
}
