"""One writer a folder: another is told who writes."""

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lightstride.errors import OutputError
from lightstride.files.lock import locked


def hold(folder: str, held: Event, go: Event) -> None:
    with locked(Path(folder)):
        held.set()
        go.wait()


def test_another_writer_is_told_who_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    held, go = context.Event(), context.Event()
    child = context.Process(target=hold, args=(str(tmp_path / "out"), held, go))
    child.start()
    assert held.wait(60)
    with pytest.raises(OutputError, match=f"process {child.pid} on"), locked(tmp_path / "out"):
        pass
    child.kill()
    child.join()
    with locked(tmp_path / "out"), locked(tmp_path / "out"):  # a stale lock; held twice by one
        assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
    assert not list(tmp_path.iterdir())
