"""Activations in files are what was written, and a disk without room is one line."""

import errno
import os
from pathlib import Path

import pytest
import torch

from lightstride.errors import OutputError
from lightstride.models.activations import ActivationStore, activation_store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_hold_what_memory_holds(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(5, 3, 4).to(dtype)
    with activation_store(tmp_path / "a" / "spill") as shelf:
        rows = shelf.room(5, 3, 4, dtype=dtype)
        rows[1:4] = values[1:4].transpose(0, 1).contiguous().transpose(0, 1)
        rows[0:1], rows[4:9] = values[:1], values[4:]
        plain = ActivationStore().room(5, 3, 4, dtype=dtype)
        plain[0:5] = values
        assert (rows.shape, rows.dtype) == (plain.shape, plain.dtype)
        for where in (slice(0, 5), slice(2, 3), slice(3, 5)):
            assert torch.equal(rows[where], plain[where])
        assert not list((tmp_path / "a" / "spill").iterdir())
    assert not (tmp_path / "a" / "spill").exists()


@pytest.mark.parametrize("moment", ["made", "written"])
def test_a_full_disk_is_one_line(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with activation_store(tmp_path / "spill") as shelf:
        if moment == "made":
            monkeypatch.setattr(os, "posix_fallocate", full)
        else:
            monkeypatch.setattr("lightstride.models.activations.pour", full)
        message = f"keep activations in {tmp_path}/spill: No space left .*make room there"
        with pytest.raises(OutputError, match=message):
            shelf.room(2, 2, dtype=torch.float32)[0:2] = torch.zeros(2, 2)
    assert not list(tmp_path.iterdir())
