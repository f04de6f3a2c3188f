"""Freed memory: what glibc keeps of small tensors is given back."""

import platform

import pytest
import torch

from lightstride.bench.machine import resident_bytes
from lightstride.models.device import give_back_freed

TENSORS, FLOATS = 1600, 1 << 14
"""Of 64 KiB each: small enough to come from the heap."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide themselves")
def test_freed_tensors_go_back_to_the_system() -> None:
    give_back_freed()
    before = resident_bytes("VmRSS")
    tensors = [torch.ones(FLOATS) for _ in range(TENSORS)]
    used = 4 * FLOATS * TENSORS
    last = tensors[-1]
    del tensors
    kept = resident_bytes("VmRSS") - before
    give_back_freed()
    left = resident_bytes("VmRSS") - before
    assert kept > 0.8 * used
    assert left < 0.2 * used
    assert last.sum() == FLOATS
