"""Tensors as bytes of files, read and written in place: no copy, no mapping."""

from io import FileIO

import torch
from torch import Tensor

FLOAT_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Of weights that are computed with as they are, as safetensors calls them."""


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, which can be written to."""
    assert tensor.is_contiguous()
    view: memoryview = tensor.detach().flatten().view(torch.uint8).numpy().data
    return view


def fill(tensor: Tensor, file: FileIO, start: int) -> bool:
    """Read a tensor's bytes from a place of an unbuffered file; False where the file ends first."""
    view = bytes_of(tensor)
    file.seek(start)
    while view and (count := file.readinto(view)):
        view = view[count:]
    return not view


def pour(tensor: Tensor, file: FileIO) -> None:
    """Write a tensor's bytes at the place where an unbuffered file is."""
    view = bytes_of(tensor)
    while view:
        view = view[file.write(view) :]
