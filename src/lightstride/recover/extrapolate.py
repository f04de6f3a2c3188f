"""What the end of a training will be, from what was measured at its beginning.

The held-out loss falls about like a power of the tokens read,

    nll(t) = a + b (1 + t / t0)^-c

with t0 the tokens of the first measurement.  For each c of a grid, a and b are the least-squares
ones; every curve speaks for the end that it sees, the louder the better it fits, with the standard
error of its prediction.  What is said is their mean, and the range of what they see.  A measurement
before the training is left out by the caller: while the learning rate rises, little is gained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

EXPONENTS = tuple(0.1 * number for number in range(1, 16))
NOISE = 2e-3
"""Nats by which a measurement may be off a curve that is right."""
DEVIATIONS = 1.5
"""Standard deviations that the range reaches to either side."""


@dataclass(frozen=True)
class Forecast:
    """The perplexity at the end."""

    perplexity: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Curve:
    """The best curve of one exponent: its end, that end's standard error, and how it fits."""

    end: float
    deviation: float
    squared_error: float
    falls: bool


def extrapolate(tokens: Sequence[float], losses: Sequence[float], end: float) -> Forecast | None:
    """The perplexity after `end` tokens, from held-out losses in nats after some; three or more.

    None where they do not fall, as in a model that was recovered before: its loss rises with the
    learning rate, and says nothing of what comes when that has fallen again.
    """
    assert len(tokens) == len(losses) >= 3
    first = next(count for count in tokens if count > 0)
    curves = [fitted(tokens, losses, first, c, end) for c in EXPONENTS]
    falling = [curve for curve in curves if curve.falls]
    if not falling:
        return None
    least = min(curve.squared_error for curve in falling)
    variance = max(NOISE**2, least / (len(tokens) - 2))
    weights = [math.exp((least - curve.squared_error) / (2 * variance)) for curve in falling]
    total = sum(weights)
    parts = list(zip(weights, falling, strict=True))
    middle = sum(weight * curve.end for weight, curve in parts) / total
    spread = sum(w * ((c.end - middle) ** 2 + c.deviation**2) for w, c in parts) / total
    reach = DEVIATIONS * math.sqrt(spread)
    return Forecast(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def fitted(
    tokens: Sequence[float], losses: Sequence[float], first: float, exponent: float, end: float
) -> Curve:
    """The least-squares curve with this exponent, at its end."""
    xs = [(1 + count / first) ** -exponent for count in tokens]
    count, mean_x, mean_y = len(xs), sum(xs) / len(xs), sum(losses) / len(losses)
    spread = sum((x - mean_x) ** 2 for x in xs)
    b = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, losses, strict=True)) / spread
    a = mean_y - b * mean_x
    error = sum((a + b * x - y) ** 2 for x, y in zip(xs, losses, strict=True))
    x_end = (1 + end / first) ** -exponent
    noise = max(NOISE, math.sqrt(error / (count - 2)))
    deviation = noise * math.sqrt(1 / count + (x_end - mean_x) ** 2 / spread)
    return Curve(a + b * x_end, deviation, error, b >= 0)
