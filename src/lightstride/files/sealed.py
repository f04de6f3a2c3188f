"""JSON that carries a hash of what it says: what a run writes and reads again.

A value that was changed by a fault of the disk or by hand is found, and never taken for what was
measured.  Documents and lines without a hash, of older versions, are read as they are, with types
and ranges alone.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from lightstride.files.read import Error, T, parse_json, read_json
from lightstride.files.write import append_lines, read_lines, write_json

KEY = "sha256"
LENGTH = 16
"""Hexadecimal digits of the hash."""
Document = Mapping[str, object]


def sealed(document: Document) -> dict[str, object]:
    """The document with the hash of what else it says."""
    return {**document, KEY: digest(document)}


def digest(document: Document) -> str:
    """Hash of a document without its own hash; the order of keys does not matter."""
    rest = {key: value for key, value in document.items() if key != KEY}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def opened(document: dict[str, object], kind: type[T], where: str, error: Error) -> T:
    """The document without its hash, as an instance of `kind`; `error` where either is wrong."""
    if KEY in document and document[KEY] != digest(document):
        raise error(f"{where}: it is not what was written, its hash differs")
    rest = {key: value for key, value in document.items() if key != KEY}
    try:
        return msgspec.convert(rest, kind)
    except msgspec.ValidationError as cause:
        raise error(f"{where}: {cause}") from cause


def write_sealed(path: Path, document: Document) -> None:
    """Write a document with its hash, whole or not at all."""
    write_json(path, sealed(json.loads(json.dumps(document))))


def read_sealed(path: Path, kind: type[T], error: Error) -> T:
    """The document of a file, as an instance of `kind`, its hash checked."""
    return opened(read_json(path, dict[str, object], error), kind, str(path), error)


def append_sealed(path: Path, documents: Iterable[Document]) -> None:
    """Append a line for each document, each with its hash."""
    append_lines(path, [json.dumps(sealed(each)) for each in documents])


def read_sealed_lines(path: Path, kind: type[T], error: Error, *, mend: bool = False) -> list[T]:
    """The whole lines of a file, each as an instance of `kind`, hashes checked.

    With `mend` a last line that was cut is taken off the file.
    """
    found = []
    for number, line in enumerate(read_lines(path, mend=mend), start=1):
        where = f"{path} line {number}"
        found.append(opened(parse_json(line, dict[str, object], where, error), kind, where, error))
    return found
