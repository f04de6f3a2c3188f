"""What the end will be, from curves whose end is known."""

import math

import pytest

from lightstride.recover.extrapolate import extrapolate

TOKENS = [0.0, 5000.0, 10000.0, 15000.0, 20000.0]


@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.2])
def test_a_power_law_is_seen_to_its_end(exponent: float) -> None:
    def loss(tokens: float) -> float:
        return 3.1 + 0.4 * (1 + tokens / 5000) ** -exponent

    end = 400_000.0
    found = extrapolate(TOKENS, [loss(each) for each in TOKENS], end)
    assert found.low < math.exp(loss(end)) < found.high * 1.0001
    assert found.low <= found.perplexity <= found.high


def test_a_loss_that_does_not_fall_stays() -> None:
    found = extrapolate(TOKENS, [3.0, 3.1, 3.2, 3.2, 3.3], 1e6)
    assert found.perplexity >= math.exp(3.0)
