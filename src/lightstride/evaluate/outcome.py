"""The result of a task, and the share that one model retains of another's, item by item.

Two models answer the same items, so their difference is known better than either score: with
d_i = a_i - b_i over n items its standard error is std(d) / sqrt(n).  Retained is a ratio of
means R = A / B; its standard error is std(a_i - R b_i) / (B sqrt(n)) (delta method).  The mean
over tasks weighs every task alike: R = sum A_t / sum B_t.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lightstride.errors import DataError


@dataclass(frozen=True)
class Metric:
    """A mean over items with its standard error (None where lm-eval gives none)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """The result of one task; `metric` names the number that stands for it."""

    task: str
    metric: str
    metrics: Mapping[str, Metric]
    """Every metric of lm-eval, by its name and filter: `acc,none`."""
    items: tuple[float, ...]
    """The headline metric of every item, in the order of the data; empty if it is not a mean."""
    num_items: int
    chance: float | None
    """Expected accuracy of guessing, where there are choices."""
    higher_is_better: bool
    data_hash: str
    """SHA-256 over all items as they stand in the data."""

    @property
    def headline(self) -> Metric:
        """The metric that stands for the task."""
        return self.metrics[self.metric]

    def as_dict(self) -> dict[str, object]:
        """For JSON. Items that are all 0 or 1 become one string of digits."""
        binary = all(item in (0.0, 1.0) for item in self.items)
        return {
            "metric": self.metric,
            "value": self.headline.value,
            "stderr": self.headline.stderr,
            "num_items": self.num_items,
            "chance": self.chance,
            "higher_is_better": self.higher_is_better,
            "data_hash": self.data_hash,
            "metrics": {k: {"value": m.value, "stderr": m.stderr} for k, m in self.metrics.items()},
            "items": "".join(str(int(i)) for i in self.items) if binary else list(self.items),
        }


def read_items(value: object) -> tuple[float, ...]:
    """Items as `TaskResult.as_dict` wrote them."""
    assert isinstance(value, str | list)
    return tuple(float(item) for item in value)


@dataclass(frozen=True)
class Retained:
    """One model's score against another's on the same items."""

    score: float
    against: float
    difference: float
    difference_stderr: float
    ratio: float
    ratio_stderr: float
    above_chance: float | None
    """The same ratio with guessing taken off both; None without choices, or if both only guess."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return dict(vars(self))


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of these values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def divide(a: float, b: float) -> float:
    """a / b, not a number where b is 0."""
    return a / b if b else math.nan


def retained(
    items: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    chances: Mapping[str, float | None],
) -> Retained:
    """Share retained on one task, or the mean of several: {task: (its items, the other's)}."""
    assert items
    for task, (ours, theirs) in items.items():
        if not ours or len(ours) != len(theirs):
            raise DataError(
                f"{task} cannot be compared: {len(ours)} items against {len(theirs)}; "
                f"both models must answer the same"
            )
    score = fmean(fmean(ours) for ours, _ in items.values())
    against = fmean(fmean(theirs) for _, theirs in items.values())
    ratio = divide(score, against)
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in items.values()]
    rests = [[a - ratio * b for a, b in zip(*pair, strict=True)] for pair in items.values()]
    known = [chances[task] for task in items]
    floors = [chance for chance in known if chance is not None]
    floor = fmean(floors) if len(floors) == len(known) else None
    return Retained(
        score=score,
        against=against,
        difference=score - against,
        difference_stderr=mean_stderr(differences),
        ratio=ratio,
        ratio_stderr=divide(mean_stderr(rests), against),
        above_chance=(
            None if floor is None or against <= floor else (score - floor) / (against - floor)
        ),
    )


def mean_stderr(groups: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean of the groups' means."""
    return math.sqrt(sum(standard_error(group) ** 2 for group in groups)) / len(groups)
