"""How many guesses a step checks: those that bring the most tokens a second, of all rows together.

With chances p_1 >= p_2 >= ... of all rows' guesses in one list (joint, so a guess never stands
before its parent), R rows, t(n) the seconds of a forward over n columns and d those of drafting,

    n* = argmax_n (R + p_1 + ... + p_n) / (t(R + n) + d):

every row brings one token for certain, and each guess as many as it is likely.  If that is hardly
more than without any, none is checked.  Where rows are padded to one width, the same over widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_GAIN = 1.03
"""Gain over no guesses for which any are checked: the largest of many forecasts is often one that
promises too much."""

Times = npt.NDArray[np.float64]
"""Seconds of a forward by its columns, from 0."""


@dataclass(frozen=True)
class Choice:
    """Guesses of each row that are worth a column, and the tokens a second expected with them."""

    counts: list[int]
    rate: float


def best_together(
    chances: Sequence[Sequence[float]], num_rows: int, times: Times, drafting: float
) -> Choice:
    """The best number of guesses of all rows; each row's chances descend."""
    pool = sorted(
        ((chance, row) for row, own in enumerate(chances) for chance in own), key=lambda c: -c[0]
    )
    expected = num_rows + np.cumsum([0.0, *(chance for chance, _ in pool)])
    rates = expected / (times[num_rows : num_rows + len(expected)] + drafting)
    best = int(rates.argmax())
    if rates[best] < LEAST_GAIN * rates[0]:
        best = 0
    counts = [0] * len(chances)
    for _, row in pool[:best]:
        counts[row] += 1
    return Choice(counts, float(rates[best]))


def best_width(
    chances: Sequence[Sequence[float]], num_rows: int, times: Times, drafting: float
) -> Choice:
    """The same where every row has as many columns as the widest."""
    widest = max(map(len, chances), default=0)
    expected, rates = float(num_rows), []
    for width in range(widest + 1):
        if width:
            expected += sum(own[width - 1] for own in chances if len(own) >= width)
        rates.append(expected / (float(times[num_rows * (1 + width)]) + drafting))
    best = int(np.argmax(rates))
    if rates[best] < LEAST_GAIN * rates[0]:
        best = 0
    return Choice([min(best, len(own)) for own in chances], rates[best])
