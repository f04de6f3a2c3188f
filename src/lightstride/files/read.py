"""The one way to read: bounded in size and depth, checked against a type, else one clear line.

Every reader takes the error to raise, an exception of `errors.py`; its text names the file and
what is wrong with it.  A type is whatever msgspec knows: a dict, a `msgspec.Struct` with ranges, a
union.  JSON is as transformers reads it (Infinity and NaN are numbers) unless a type is stricter.
"""

import hashlib
import json
import stat
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from safetensors import safe_open

from lightstride.errors import LightstrideError

T = TypeVar("T")
Error = type[LightstrideError]

MEBIBYTE = 1 << 20
MAX_JSON_BYTES = 64 * MEBIBYTE
"""More than any config, index or record; tokenizers of large vocabularies have about 35 MB."""
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number that is one: neither infinite nor NaN."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Token = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]

MAX_DEPTH = 100
"""Nesting of lists and objects; readers that recurse stop near 1,000."""


def read_bytes(path: Path, error: Error, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file of at most `limit` bytes."""
    size = file_size(path, error)
    if size > limit:
        raise error(f"{path} has {size:,} bytes; at most {limit:,} are read")
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause


def file_size(path: Path, error: Error) -> int:
    """Bytes of a file; `error` for a pipe or a device, which may never end, and for no file."""
    try:
        found = path.stat()
    except (OSError, ValueError) as cause:  # a name with a zero byte is a ValueError
        raise error(f"cannot read {path}: {getattr(cause, 'strerror', cause)}") from cause
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise error(f"cannot read {path}: it is {kind}, not a file")
    return found.st_size


def open_tensors(path: Path, error: Error) -> safe_open:
    """A safetensors file to read tensors of; `error` for a pipe, which would be waited for."""
    file_size(path, error)
    return safe_open(path, framework="pt")


def file_digest(path: Path, error: Error) -> str:
    """SHA-256 of a file's bytes."""
    file_size(path, error)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause


def read_text(path: Path, error: Error, *, limit: int = MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file."""
    return as_text(read_bytes(path, error, limit=limit), str(path), error)


def read_json(
    path: Path, kind: type[T], error: Error, *, limit: int = MAX_JSON_BYTES, finite: bool = False
) -> T:
    """The JSON document of a file, as an instance of `kind`; with `finite` no Infinity or NaN."""
    data = read_bytes(path, error, limit=limit)
    return parse_json(data, kind, str(path), error, finite=finite)


def parse_json(
    data: bytes | str, kind: type[T], where: str, error: Error, *, finite: bool = False
) -> T:
    """A JSON document as an instance of `kind`; `where` names it in the error."""
    text = as_text(data, where, error) if isinstance(data, bytes) else data
    try:
        document = json.loads(text)
        check_depth(document)
        check_writable(document, finite=finite)
        return msgspec.convert(document, kind)
    except RecursionError as cause:
        raise error(f"{where} is nested deeper than {MAX_DEPTH} levels") from cause
    except msgspec.ValidationError as cause:
        raise error(f"{where}: {cause}") from cause
    except ValueError as cause:
        raise error(f"{where} is not JSON: {cause}") from cause


def as_text(data: bytes, where: str, error: Error) -> str:
    """UTF-8 bytes as text, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{where} is not UTF-8 text: {cause.reason} at byte {cause.start}") from cause


def check_depth(document: object) -> None:
    """Raise RecursionError where lists and objects are nested too deeply."""
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        level = [
            value
            for each in level
            if isinstance(each, dict | list)
            for value in (each.values() if isinstance(each, dict) else each)
            if isinstance(value, dict | list)
        ]


def check_writable(document: object, *, finite: bool) -> None:
    """Raise ValueError where a text is no UTF-8, or a number not finite where it must be."""
    json.dumps(document, ensure_ascii=False, allow_nan=not finite).encode("utf-8")
