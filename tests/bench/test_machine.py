"""What the machine can do, and the memory that a call takes at most."""

import sys

import pytest
import torch

from lightstride.bench import machine
from lightstride.bench.machine import PeakMemory, measure_machine


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_was_there_for_a_moment() -> None:
    memory = PeakMemory(torch.device("cpu"))
    for megabytes in (96, 32):
        memory.start()
        held = torch.ones(megabytes * 2**18)
        del held
        peak = memory.stop()
        assert peak is not None
        assert 0.8 * megabytes < peak / 2**20 < 1.5 * megabytes + 8


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(machine, "MATRIX_SIZE", {"cpu": 64})
    found = measure_machine(torch.device("cpu"), torch.float32)
    assert 1e7 < found.bandwidth < 1e13
    assert 1e6 < found.matrix_rate < 1e14
