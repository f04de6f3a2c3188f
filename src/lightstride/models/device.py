"""`--device` and `--dtype` on this machine, the time that a call takes there, freed memory."""

import ctypes
import sys
import time
from collections.abc import Callable

import torch

from lightstride.errors import ConfigError


def pick_device(name: str) -> str:
    """The device to compute on: the accelerator for auto, if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    available = ("cpu",) if found is None else ("cpu", found.type)
    if name == "auto":
        return available[-1]
    if name not in available:
        raise ConfigError(
            f"--device {name} is not on this machine; there is {', '.join(available)}"
        )
    return name


def pick_dtype(name: str, suits: torch.dtype) -> torch.dtype:
    """The precision of the weights: for auto, what suits the command."""
    if name == "auto":
        return suits
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def suitable_dtype(device: str) -> torch.dtype:
    """bf16 where it is fast, else fp32."""
    if device != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def best_time(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def give_back_freed() -> None:
    """Let glibc give the pages of freed tensors back to the system.

    Of its own it keeps those of tensors below 32 MiB for what comes next, which may be of other
    sizes.  To map every tensor instead takes half as much time again (`LOG.md`).
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
