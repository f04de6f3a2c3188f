"""Scores as tables for a person: every mean stands under its parts."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from lightstride.evaluate.outcome import Retained, TaskResult
from lightstride.results import markdown_table

MEAN = "mean"


def percent(value: float | None, *, sign: bool = False) -> str:
    """A share as a percentage; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def score_table(tasks: Sequence[TaskResult]) -> str:
    """One model's scores in percent, with standard errors and what guessing would get."""
    rows = [
        [
            one.task,
            one.metric.removesuffix(",none"),
            percent(one.headline.value),
            percent(one.headline.stderr),
            percent(one.chance),
            f"{one.num_items:,}",
        ]
        for one in tasks
    ]
    accuracies = [one for one in tasks if one.items and one.higher_is_better]
    if len(accuracies) > 1:
        errors = [one.headline.stderr or 0.0 for one in accuracies]
        stderr = math.hypot(*errors) / len(errors)
        mean = fmean(one.headline.value for one in accuracies)
        rows.append([f"mean of {len(accuracies)}", "", percent(mean), percent(stderr), "", ""])
    return markdown_table(["task", "metric", "score %", "±", "chance %", "items"], rows)


def retained_table(tasks: Mapping[str, Retained], model: str, against: str) -> str:
    """Two models' scores side by side, task by task and then their mean, all in percent."""
    header = ["task", model, against, "difference", "±", "retained", "±", "above chance"]
    parts = len(tasks) - (MEAN in tasks)
    rows = [
        [
            f"mean of {parts}" if task == MEAN else task,
            percent(one.score),
            percent(one.against),
            percent(one.difference, sign=True),
            percent(one.difference_stderr),
            percent(one.ratio),
            percent(one.ratio_stderr),
            percent(one.above_chance),
        ]
        for task, one in tasks.items()
    ]
    return markdown_table(header, rows)
