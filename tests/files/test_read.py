"""The one reader: bounded, typed, one line for what is wrong."""

import os
from pathlib import Path

import msgspec
import pytest

from lightstride.errors import DataError
from lightstride.files.read import (
    file_digest,
    open_tensors,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff{}", "not UTF-8"),
        (b"{", "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b"[" * 101 + b"]" * 101, "deeper than 100"),
        (b"[" * 100_000, "deeper than 100"),
        (b'{"a": "x"}', "Expected `int`"),
        (b"[1]", "Expected `object`"),
    ],
)
def test_what_is_no_document_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_json(path, dict[str, int], DataError)
    assert str(path) in str(error.value)


def test_a_document_is_of_its_type(tmp_path: Path) -> None:
    class Point(msgspec.Struct):
        x: int
        y: float = 0.5

    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": 3, "more": 1}')
    assert read_json(tmp_path / "a.json", Point, DataError) == Point(3)
    assert parse_json("[1e999, NaN]", list[float], "here", DataError)[0] == float("inf")


def test_files_are_bounded_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"a\.txt has 100 bytes; at most 10"):
        read_bytes(tmp_path / "a.txt", DataError, limit=10)
    with pytest.raises(DataError, match="No such file"):
        read_text(tmp_path / "b.txt", DataError)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="a pipe or a device"):
        open_tensors(tmp_path / "a.safetensors", DataError)
    with pytest.raises(DataError, match="a pipe or a device"):
        file_digest(tmp_path / "a.safetensors", DataError)
