"""What the end of a training will be, from what was measured at its beginning.

The held-out loss falls about like a power of the tokens read,

    nll(t) = a + b (1 + t / t0)^-c

with t0 the tokens of the first measurement.  For each c of a grid, a and b are the least-squares
ones; all curves that fit the points about as well as the best one speak, each with the end that it
sees, and their spread is the error.  The last part of a training, in which the learning rate
falls, gives more than the curve knows; so the spread leans to the better side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

EXPONENTS = tuple(0.1 * number for number in range(1, 16))
NOISE = 2e-3
"""Nats by which a measurement may be off a curve that is right."""
FALLING_RATE = 0.15
"""Share of the whole gain that the falling learning rate may add."""


@dataclass(frozen=True)
class Forecast:
    """The perplexity at the end."""

    perplexity: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return dict(vars(self))


def extrapolate(tokens: Sequence[float], losses: Sequence[float], end: float) -> Forecast:
    """The perplexity after `end` tokens, from held-out losses in nats after some; three or more."""
    assert len(tokens) == len(losses) >= 3
    first = next(count for count in tokens if count > 0)
    fits = [curve(tokens, losses, first, c) for c in EXPONENTS]
    best = min(error for _, _, error in fits)
    allowed = best + NOISE**2 * len(tokens)
    ends = [
        a + b * (1 + end / first) ** -c
        for c, (a, b, error) in zip(EXPONENTS, fits, strict=True)
        if error <= allowed and b >= 0
    ] or [min(losses)]
    middle = sum(ends) / len(ends)
    lowest = min(ends) - FALLING_RATE * max(0.0, losses[0] - middle)
    return Forecast(math.exp(middle), math.exp(lowest), math.exp(max(ends)))


def curve(
    tokens: Sequence[float], losses: Sequence[float], first: float, exponent: float
) -> tuple[float, float, float]:
    """Level, height and squared error of the best curve with this exponent."""
    xs = [(1 + count / first) ** -exponent for count in tokens]
    mean_x, mean_y = sum(xs) / len(xs), sum(losses) / len(losses)
    spread = sum((x - mean_x) ** 2 for x in xs)
    b = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, losses, strict=True)) / spread
    a = mean_y - b * mean_x
    return a, b, sum((a + b * x - y) ** 2 for x, y in zip(xs, losses, strict=True))
