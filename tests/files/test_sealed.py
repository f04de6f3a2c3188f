"""Documents with a hash: what was changed is refused, what has none is read by its types."""

import json
from pathlib import Path

import msgspec
import pytest

from lightstride.errors import WorkError
from lightstride.files.sealed import append_sealed, read_sealed, read_sealed_lines, write_sealed


class Note(msgspec.Struct):
    """Two fields."""

    name: str
    value: float


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_sealed(path, {"name": "a", "value": 0.1})
    assert read_sealed(path, Note, WorkError) == Note("a", 0.1)
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(WorkError, match="not what was written"):
        read_sealed(path, Note, WorkError)
    path.write_text(json.dumps({"value": 0.2, "name": "a"}))
    assert read_sealed(path, Note, WorkError) == Note("a", 0.2)
    path.write_text(json.dumps({"value": "x", "name": "a"}))
    with pytest.raises(WorkError, match=r"note\.json: Expected `float`"):
        read_sealed(path, Note, WorkError)


def test_a_cut_line_is_none_and_a_changed_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    append_sealed(path, [{"name": "a", "value": 1.0}, {"name": "b", "value": 2.0}])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    assert [each.name for each in read_sealed_lines(path, Note, WorkError, mend=True)] == ["a", "b"]
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b"2.0", b"3.0"))
    with pytest.raises(WorkError, match="line 2: it is not what was written"):
        read_sealed_lines(path, Note, WorkError)
