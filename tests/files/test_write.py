"""Files and folders appear whole or not at all, with a usual file's permissions."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightstride.errors import OutputError
from lightstride.files import (
    append_lines,
    cache_folder,
    read_lines,
    whole_file,
    whole_folder,
    write_json,
)


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_cache_folder_is_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LIGHTSTRIDE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lightstride"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "a") as partial:
        partial.joinpath("file").write_text({}["no text"])
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "a") as partial:
        (partial / "file").write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    with pytest.raises(OutputError, match="exists already"), whole_folder(tmp_path / "a"):
        pytest.fail("written into")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half" + {}["no text"])
    assert list(path.parent.iterdir()) == []
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OutputError, match="cannot write"), whole_file(path / "below"):
        pytest.fail("written into")


def test_files_have_a_new_files_usual_permissions(umask: int, tmp_path: Path) -> None:
    """safetensors alone writes files that nobody but their owner may read."""
    with whole_folder(tmp_path / "folder") as partial:
        save_file({"x": torch.zeros(1)}, partial / "x.safetensors")
    with whole_file(tmp_path / "y.safetensors") as partial:
        save_file({"y": torch.zeros(1)}, partial)
    write_json(tmp_path / "z.json", {})
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == dict.fromkeys(("x.safetensors", "y.safetensors", "z.json"), 0o666 & ~umask)


def test_a_cut_line_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    assert read_lines(path) == []
    append_lines(path, ["one", "two"])
    with path.open("a") as file:
        file.write("thr")
    assert read_lines(path) == read_lines(path, mend=True) == [b"one", b"two"]
    append_lines(path, ["three"])
    assert read_lines(path) == [b"one", b"two", b"three"]


def test_what_a_dead_process_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = tmp_path / f".out.{dead.pid}@{host}.partial"
    left.mkdir()
    (left / "half").write_text("half")
    kept = [
        tmp_path / f".out.{os.getppid()}@{host}.partial",
        tmp_path / f".out.{dead.pid}@elsewhere.partial",
        tmp_path / f".other.{dead.pid}@{host}.partial",
    ]
    for path in kept:
        path.write_text("half")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("whole")
    assert not left.exists()
    assert all(path.exists() for path in kept)
