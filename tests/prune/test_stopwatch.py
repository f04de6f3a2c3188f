"""Times of stages."""

import time

import pytest

from lightstride.prune.stopwatch import Stopwatch


def test_stages_are_summed_and_waiting_takes_no_processor() -> None:
    clock = Stopwatch()
    for _ in range(2):
        with clock("waiting"):
            time.sleep(0.02)
    with pytest.raises(ValueError, match="broken"), clock("ending"):
        raise ValueError("broken")
    assert list(clock.as_dict()) == ["waiting", "ending"]
    waiting = clock.as_dict()["waiting"]
    assert waiting["seconds"] >= 0.04
    assert waiting["processor_seconds"] < waiting["seconds"]
