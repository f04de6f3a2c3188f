"""The number of guesses that brings the most tokens a second, against enumeration."""

import itertools
import random

import numpy as np
import pytest

from lightstride.smash.decode.budget import LEAST_GAIN, best_together, best_width


def chances_of(rng: random.Random, rows: int) -> list[list[float]]:
    """Descending chances of each row, perhaps of none."""
    return [
        sorted((rng.random() for _ in range(rng.randrange(4))), reverse=True) for _ in range(rows)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_no_other_number_of_guesses_is_better(seed: int) -> None:
    rng = random.Random(seed)
    chances = chances_of(rng, 3)
    times = np.cumsum([1.0, *(rng.choice((0.02, 0.2, 0.6)) for _ in range(40))])
    drafting = rng.random()

    def rate(counts: tuple[int, ...], columns: int) -> float:
        own = zip(chances, counts, strict=True)
        return (3 + sum(sum(each[:n]) for each, n in own)) / (times[columns] + drafting)

    every = list(itertools.product(*(range(len(own) + 1) for own in chances)))
    without = rate((0, 0, 0), 3)

    def worth(best: float) -> float:
        return best if best >= LEAST_GAIN * without else without

    together = best_together(chances, 3, times, drafting)
    assert together.rate == pytest.approx(worth(max(rate(c, 3 + sum(c)) for c in every)))
    assert together.rate == pytest.approx(rate(tuple(together.counts), 3 + sum(together.counts)))
    padded = best_width(chances, 3, times, drafting)
    assert padded.rate == pytest.approx(worth(max(rate(c, 3 * (1 + max(c))) for c in every)))


def test_where_columns_cost_nothing_all_are_checked_and_where_they_cost_all_none() -> None:
    chances = [[0.5, 0.01], [0.2]]
    assert best_together(chances, 2, np.ones(10), 0.0).counts == [2, 1]
    assert best_together(chances, 2, np.arange(10.0), 0.0).counts == [0, 0]
    assert best_together([[0.02]], 1, np.ones(10), 0.0).counts == [0]
    assert best_together([[], []], 2, np.ones(10), 0.0).rate == 2
    assert best_width([], 2, np.ones(10), 0.0).rate == 2
