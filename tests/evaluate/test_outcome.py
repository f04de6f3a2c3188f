"""Quality that is kept, paired by item, with its error."""

import json
import random
from statistics import fmean, stdev

import pytest

from lightstride.errors import DataError
from lightstride.evaluate.outcome import Metric, TaskResult, read_items, retained


def coins(seed: int, count: int, share: float) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < share) for _ in range(count)]


def test_retained_is_paired() -> None:
    theirs = coins(0, 400, 0.6)
    flip = coins(1, 400, 0.1)
    ours = [b * (1 - f) for b, f in zip(theirs, flip, strict=True)]
    found = retained({"t": (ours, theirs)}, {"t": 0.25})
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert found.difference == pytest.approx(fmean(differences))
    assert found.difference_stderr == pytest.approx(stdev(differences) / 20)
    assert found.ratio == pytest.approx(fmean(ours) / fmean(theirs))
    unpaired = (stdev(ours) ** 2 / 400 + stdev(theirs) ** 2 / 400) ** 0.5
    assert found.difference_stderr < 0.6 * unpaired
    assert found.above_chance == pytest.approx((fmean(ours) - 0.25) / (fmean(theirs) - 0.25))


def test_the_error_of_a_ratio_is_that_of_resampling() -> None:
    tasks = {"a": (coins(2, 300, 0.4), coins(3, 300, 0.6)), "b": (coins(4, 200, 0.5),) * 2}
    found = retained(tasks, {"a": None, "b": 0.5})
    draw = random.Random(0)
    ratios = []
    for _ in range(2000):
        tops, bottoms = [], []
        for ours, theirs in tasks.values():
            places = draw.choices(range(len(ours)), k=len(ours))
            tops.append(fmean(ours[i] for i in places))
            bottoms.append(fmean(theirs[i] for i in places))
        ratios.append(sum(tops) / sum(bottoms))
    assert found.ratio_stderr == pytest.approx(stdev(ratios), rel=0.1)
    assert found.above_chance is None


def test_guessing_is_nothing_to_retain() -> None:
    guesses = [0.0, 1.0]
    assert retained({"t": (guesses, guesses)}, {"t": 0.5}).above_chance is None


def test_different_items_are_not_compared() -> None:
    with pytest.raises(DataError, match="piqa cannot be compared: 2 items against 3"):
        retained({"piqa": ([1, 0], [1, 0, 1])}, {"piqa": 0.5})


@pytest.mark.parametrize("items", [(1.0, 0.0, 1.0), (0.25, 1.0)])
def test_items_survive_json(items: tuple[float, ...]) -> None:
    result = TaskResult(
        task="t",
        metric="acc,none",
        metrics={"acc,none": Metric(0.5, None)},
        items=items,
        num_items=len(items),
        chance=None,
        higher_is_better=True,
        data_hash="ab",
    )
    assert read_items(json.loads(json.dumps(result.as_dict()))["items"]) == items
