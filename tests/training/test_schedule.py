"""The learning rate over a training."""

import pytest

from lightstride.training.schedule import rate_at


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [rate_at(share / 100, 0.1) for share in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1
    assert 0 < rates[0] < 0.02
    assert rates[-1] == pytest.approx(0)
