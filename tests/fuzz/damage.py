"""Damage: a few steps, each of which spoils a file as bytes, as text, as JSON, or as a place.

A `Damage` is a value of literals alone, so that its repr, which a failure prints, makes it again.
Numbers that choose a place (`draw`) seed a walk down the document: fields near the top are chosen
as often as the thousands that lie deep in a vocabulary.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Steps = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Damage:
    """One way to spoil a file; `steps` are applied in turn."""

    steps: Steps

    def apply(self, path: Path) -> None:
        """Spoil what is at `path`."""
        for name, *arguments in self.steps:
            if name in PLACES:
                PLACES[name](path, *arguments)
            elif path.is_file() and not path.is_symlink():
                path.write_bytes(STEPS[name](path.read_bytes(), *arguments))

    def __repr__(self) -> str:
        return repr(self.steps)


# Bytes.


def flip(data: bytes, place: float, value: int) -> bytes:
    if not data:
        return data
    at = min(int(place * len(data)), len(data) - 1)
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]


def flip_in_head(data: bytes, place: float, value: int) -> bytes:
    return flip(data[:512], place, value) + data[512:]


def truncate(data: bytes, place: float) -> bytes:
    return data[: int(place * len(data))]


def truncate_after(data: bytes, draw: int) -> bytes:
    """Cut behind a bracket, a comma, a colon, a quote or a line."""
    marks = [at for at, byte in enumerate(data[:20_000]) if byte in b'{}[],:"\n']
    return data[: random.Random(draw).choice(marks) + 1] if marks else data


def insert(data: bytes, place: float, what: bytes) -> bytes:
    at = int(place * len(data))
    return data[:at] + what + data[at:]


def replace(data: bytes, what: bytes) -> bytes:
    return what


def repeat(data: bytes, times: int) -> bytes:
    return data * times if len(data) < 100_000 else data


def recode(data: bytes, encoding: str) -> bytes:
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def word(data: bytes, place: float, value: int) -> bytes:
    """Eight bytes near the start replaced: lengths and counts of binary formats."""
    at = int(place * min(len(data), 4000)) // 4 * 4
    return data[:at] + struct.pack("<Q", value % 2**64) + data[at + 8 :]


# JSON.


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


def walk(document: Any, draw: int) -> tuple[Any, ...] | None:
    """A path into a document; None where it has nothing inside."""
    chance, path, node = random.Random(draw), (), document
    while isinstance(node, dict | list) and node:
        key = chance.choice([*node]) if isinstance(node, dict) else chance.randrange(len(node))
        path, node = (*path, key), node[key]
        if chance.random() < 0.4:
            break
    return path or None


def parent(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def put(document: Any, draw: int, value: Any) -> Any:
    path = walk(document, draw)
    if path is None:
        return value
    parent(document, path)[path[-1]] = value
    return document


def delete(document: Any, draw: int) -> Any:
    path = walk(document, draw)
    if path is not None:
        del parent(document, path)[path[-1]]
    return document


def swap(document: Any, draw: int, other: int) -> Any:
    one, two = walk(document, draw), walk(document, other)
    if one is None or two is None or one == two[: len(one)] or two == one[: len(two)]:
        return document
    a, b = parent(document, one), parent(document, two)
    a[one[-1]], b[two[-1]] = b[two[-1]], a[one[-1]]
    return document


def copy_to(document: Any, draw: int, other: int) -> Any:
    one, two = walk(document, draw), walk(document, other)
    if one is not None and two is not None:
        parent(document, one)[one[-1]] = json.loads(json.dumps(parent(document, two)[two[-1]]))
    return document


def add(document: Any, draw: int, value: Any) -> Any:
    path = walk(document, draw)
    holder = document if path is None else parent(document, path)
    if isinstance(holder, dict):
        holder[f"{path[-1] if path else ''}x"] = value
    elif isinstance(holder, list):
        holder.append(value)
    return document


def rename(document: Any, draw: int, name: str) -> Any:
    path = walk(document, draw)
    if path is not None and isinstance(holder := parent(document, path), dict):
        holder[name] = holder.pop(path[-1])
    return document


def retype(document: Any, draw: int, kind: str) -> Any:
    """The same value as another type has it."""
    path = walk(document, draw)
    if path is None:
        return document
    holder, value = parent(document, path), parent(document, path)[path[-1]]
    holder[path[-1]] = {
        "text": lambda: str(value),
        "list": lambda: [value],
        "object": lambda: {"0": value},
        "float": lambda: value + 0.5 if isinstance(value, int) else 0.5,
        "int": lambda: int(value) if isinstance(value, float) and abs(value) < 1e9 else 1,
        "bool": lambda: bool(value),
        "numbered": lambda: dict(enumerate(value)) if isinstance(value, list) else value,
        "empty": lambda: type(value)() if isinstance(value, dict | list | str) else None,
        "twice": lambda: value * 2 if isinstance(value, list | str) else [value, value],
    }[kind]()
    return document


def scale(document: Any, draw: int, factor: float, more: int) -> Any:
    """A number multiplied and added to; the first one on the way down from the place."""
    path = walk(document, draw)
    if path is None:
        return document
    value = parent(document, path)[path[-1]]
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        changed = value * factor + more
        is_whole = isinstance(value, int) and changed == int(changed)
        parent(document, path)[path[-1]] = int(changed) if is_whole else changed
    return document


def wrap(document: Any) -> Any:
    return [document]


def deepen(data: bytes, depth: int) -> bytes:
    return b"[" * depth + data + b"]" * depth


def raw(data: bytes, draw: int, text: bytes) -> bytes:
    """A value replaced by what json.dumps would never write."""
    try:
        spoiled = dumped(put(json.loads(data), draw, "RAW"))
    except (ValueError, RecursionError):
        return data
    return spoiled.replace(b'"RAW"', text, 1)


def deepen_inside(data: bytes, draw: int, depth: int) -> bytes:
    return raw(data, draw, b"[" * depth + b"]" * depth)


def double_key(data: bytes, draw: int, text: bytes) -> bytes:
    """The key at a place twice, the second time with another value."""
    try:
        document = json.loads(data)
        path = walk(document, draw)
        if path is None or not isinstance(holder := parent(document, path), dict):
            return data
        holder["RAW"] = 0
    except (ValueError, RecursionError):
        return data
    return dumped(document).replace(b'"RAW": 0', dumped(path[-1]) + b": " + text, 1)


JSON_STEPS: dict[str, Callable[..., bytes]] = {
    **{
        change.__name__: on_json(change)
        for change in (put, delete, swap, copy_to, add, rename, retype, scale, wrap)
    },
    "raw": raw,
    "deepen": deepen,
    "deepen_inside": deepen_inside,
    "double_key": double_key,
}


# Lines.


def in_line(change: Callable[..., bytes]) -> Callable[..., bytes]:
    """A step on one line of a file of lines."""

    def step(data: bytes, line: int, *arguments: Any) -> bytes:
        lines = data.split(b"\n")
        at = line % len(lines)
        lines[at] = change(lines[at], *arguments)
        return b"\n".join(lines)

    return step


def lose_line(data: bytes, line: int) -> bytes:
    lines = data.split(b"\n")
    del lines[line % len(lines)]
    return b"\n".join(lines)


def swap_lines(data: bytes, line: int, other: int) -> bytes:
    lines = data.split(b"\n")
    one, two = line % len(lines), other % len(lines)
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)


def double_line(data: bytes, line: int, times: int) -> bytes:
    lines = data.split(b"\n")
    at = line % len(lines)
    return b"\n".join([*lines[:at], *[lines[at]] * times, *lines[at:]])


# Places: what stands where a file should be.


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def gone(path: Path) -> None:
    removed(path)


def folder(path: Path) -> None:
    removed(path)
    path.mkdir()


def loop(path: Path) -> None:
    removed(path)
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    removed(path)
    os.mkfifo(path)


def device(path: Path, name: str) -> None:
    removed(path)
    path.symlink_to(name)


def link_out(path: Path) -> None:
    """A link to the same file outside of its folder."""
    outside = path.parent.parent / "outside"
    shutil.copyfile(path, outside)
    removed(path)
    path.symlink_to(outside)


def sparse(path: Path, size: int) -> None:
    if path.is_file() and not path.is_symlink():
        os.truncate(path, size)


def swapped(path: Path, draw: int) -> None:
    """Another file of the folder in its place."""
    others = sorted(each for each in path.parent.iterdir() if each.is_file() and each != path)
    if others and path.is_file() and not path.is_symlink():
        shutil.copyfile(random.Random(draw).choice(others), path)


def beside(path: Path, name: str, text: bytes) -> None:
    """One more file in its folder."""
    (path.parent / name).write_bytes(text)


STEPS: dict[str, Callable[..., bytes]] = {
    **{
        step.__name__: step
        for step in (flip, flip_in_head, truncate, truncate_after, insert, replace, repeat)
    },
    "recode": recode,
    "word": word,
    **JSON_STEPS,
    **{f"line_{name}": in_line(step) for name, step in {**JSON_STEPS, "flip": flip}.items()},
    "line_insert": in_line(insert),
    "line_truncate": in_line(truncate),
    "lose_line": lose_line,
    "swap_lines": swap_lines,
    "double_line": double_line,
}
PLACES: dict[str, Callable[..., None]] = {
    place.__name__: place
    for place in (gone, folder, loop, fifo, device, link_out, sparse, swapped, beside)
}
