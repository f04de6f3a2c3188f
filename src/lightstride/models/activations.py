"""Activations between two uses: in memory, or in files that are read and written window by window.

Files are not mapped into memory: a full disk is an error of a write then, and not the end of the
process, and pages of the file are none of its memory.

Shapes: N windows, each of any further shape.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lightstride.errors import OutputError
from lightstride.models.tensor_bytes import fill, pour


class Rows(Protocol):
    """A tensor, or a file that is read and written like one: by slices of its first dimension."""

    @property
    def shape(self) -> torch.Size:
        """Its whole shape."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its values."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows."""

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        """Replace some rows."""


class FileRows:
    """Rows in a file of their own, which is there as long as this is."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = path, torch.Size(shape), dtype
        self.row_bytes = self.shape[1:].numel() * dtype.itemsize
        try:
            self.file = path.open("w+b", buffering=0)
            path.unlink()  # nothing is left of it, however the process ends
            size = self.shape.numel() * dtype.itemsize
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.file.fileno(), 0, size)
        except OSError as error:
            raise spill_error(path.parent, error) from error

    def __getitem__(self, rows: slice) -> Tensor:
        first, stop, _ = rows.indices(self.shape[0])
        values = torch.empty((stop - first, *self.shape[1:]), dtype=self.dtype)
        if not fill(values, self.file, first * self.row_bytes):
            raise OutputError(f"activations in {self.path.parent} were cut short by someone else")
        return values

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        first, stop, _ = rows.indices(self.shape[0])
        assert values.shape == (stop - first, *self.shape[1:])
        whole = values.detach().to("cpu", self.dtype).contiguous()
        try:
            self.file.seek(first * self.row_bytes)
            pour(whole, self.file)
        except OSError as error:
            raise spill_error(self.path.parent, error) from error

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def spill_error(folder: Path, error: OSError) -> OutputError:
    """The error of activations that cannot be written."""
    return OutputError(
        f"cannot keep activations in {folder}: {error.strerror or error}; make room there, and "
        "go on with --resume"
    )


class ActivationStore:
    """Storage of activations: in memory, or in files in a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.count = 0

    def room(self, *shape: int, dtype: torch.dtype) -> Rows:
        """Rows of this shape; their values are not set."""
        if self.folder is None:
            return torch.empty(shape, dtype=dtype)
        self.count += 1
        return FileRows(self.folder / str(self.count), shape, dtype)


@contextmanager
def activation_store(folder: Path | None) -> Iterator[ActivationStore]:
    """A store in memory, or in a new folder of this name that is gone afterwards."""
    if folder is None:
        yield ActivationStore()
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield ActivationStore(folder)
    except OSError as error:
        raise spill_error(folder, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
