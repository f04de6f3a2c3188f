"""The machine's limits, measured here and now, and the memory that a run takes.

A share of these says whether a model is slow because of its size or because of how it is run:
decoding reads every weight once a step, so it cannot be faster than memory; reading a prompt
multiplies matrices, so it cannot be faster than the matrix units.
"""

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from lightstride.models.device import best_time, give_back_freed

READ_BYTES = {"cpu": 2**28, "other": 2**31}
MATRIX_SIZE = {"cpu": 1536, "other": 8192}
REPEATS = 7
STATUS = Path("/proc/self/status")
MEMORY = Path("/proc/meminfo")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


@dataclass(frozen=True)
class Machine:
    """Best rates of this machine: bytes read a second, and matrix operations a second."""

    bandwidth: float
    matrix_rate: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Rates of reading a tensor larger than any cache, and of multiplying square matrices."""
    kind = "cpu" if device.type == "cpu" else "other"
    read = torch.ones(READ_BYTES[kind] // 4, dtype=torch.float32, device=device)
    read_seconds = best_time(read.sum, REPEATS, device)
    size = MATRIX_SIZE[kind]
    left = torch.ones(size, size, dtype=dtype, device=device)
    matrix_seconds = best_time(lambda: left @ left, REPEATS, device)
    return Machine(READ_BYTES[kind] / read_seconds, 2 * size**3 / matrix_seconds)


class PeakMemory:
    """Bytes that a run takes at its peak beyond what was there before it.

    On an accelerator, as its allocator counted.  On Linux, the growth of the process's resident
    memory; freed memory is given back first, so that an earlier run does not hide a later one.
    None elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: int | None = None

    def start(self) -> None:
        """Forget what was there before."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu" and sys.platform == "linux":
            give_back_freed()
            CLEAR.write_text(RESET_PEAK)
            self.before = resident_bytes("VmRSS")

    def stop(self) -> int | None:
        """The peak since the start, in bytes."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return max(0, resident_bytes("VmHWM") - self.before)


def resident_bytes(field: str) -> int:
    """A field of this process's memory status, in bytes (Linux)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def free_memory() -> int | None:
    """Bytes of main memory that a program can still have (Linux; None elsewhere)."""
    if not MEMORY.exists():
        return None
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])
