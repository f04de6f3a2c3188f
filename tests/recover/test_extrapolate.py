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
    assert found is not None
    assert found.low < math.exp(loss(end)) < found.high * 1.0001
    assert found.low <= found.perplexity <= found.high


@pytest.mark.parametrize(
    ("steps", "losses"),
    [
        ([6, 11, 16, 21], [4.1227, 4.1265, 4.1364, 4.1407]),
        ([5, 11, 16, 21], [3.7680, 3.7744, 3.7958, 3.7959]),
    ],
)
def test_a_loss_that_does_not_fall_gives_no_forecast(
    steps: list[float], losses: list[float]
) -> None:
    """A half of SmolLM2-135M that was recovered before: 59.7 and 43.0 came (LOG.md)."""
    assert extrapolate(steps, losses, 592) is None


@pytest.mark.parametrize(
    ("steps", "losses", "end", "came"),
    [
        ([5, 9, 13, 17], [3.7785, 3.6865, 3.6849, 3.6862], 79, 36.08),
        ([5, 9, 14, 18], [3.7532, 3.6804, 3.6805, 3.6715], 36, 38.30),
        ([5, 9, 14, 18], [3.7744, 3.7606, 3.6915, 3.6799], 36, 37.49),
        ([5, 9, 14, 18], [3.9328, 3.8606, 3.8394, 3.7617], 36, 41.77),
        ([6, 11, 16, 21], [4.2687, 4.1411, 4.1242, 4.0744], 620, 47.49),
    ],
)
def test_the_end_of_real_runs_is_in_the_range(
    steps: list[float], losses: list[float], end: float, came: float
) -> None:
    """Cuts of SmolLM2-135M: 25%, ten minutes and four at three rates; 50%, an hour (LOG.md)."""
    found = extrapolate(steps, losses, end)
    assert found is not None
    assert found.low < came < found.high
    assert found.perplexity == pytest.approx(came, rel=0.03)
    assert found.high < 1.6 * found.low
