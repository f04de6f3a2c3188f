"""The learning curve of a recovery: held-out perplexity over minutes, with what was foretold."""

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
from matplotlib.axes import Axes

from lightstride.errors import DataError
from lightstride.report.charts import COLORS, Picture, draw, slug
from lightstride.report.facts import Facts, shorten

MAX_NLL = 700.0
"""More is no number any more as a perplexity."""


class Measurement(msgspec.Struct):
    """The held-out loss at a moment, in nats."""

    seconds: float
    nll: float


class Foretold(msgspec.Struct):
    """The perplexity at the end as the first minutes saw it."""

    perplexity: float
    low: float
    high: float


class Curve(msgspec.Struct):
    """What a recovery's result says of its way."""

    evaluations: list[Measurement]
    perplexity: float
    seconds: float
    forecast: Foretold | None = None


def learning_pictures(facts: Facts) -> list[Picture]:
    """One picture for every recovery that measured its way; DataError for one that is damaged."""
    return [
        learning_picture(path, read_curve(path, result["numbers"]))
        for path, result in facts.results.items()
        if result["kind"] == "recover" and "evaluations" in result["numbers"]
    ]


def read_curve(path: str, numbers: Mapping[str, object]) -> Curve:
    """The curve in a result's numbers."""
    try:
        return msgspec.convert(numbers, Curve)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} is no whole result of recover: {error}") from error


def learning_picture(path: str, curve: Curve) -> Picture:
    """Perplexity over the minutes of learning."""
    minutes = [each.seconds / 60 for each in curve.evaluations] + [curve.seconds / 60]
    values = [math.exp(min(each.nll, MAX_NLL)) for each in curve.evaluations] + [curve.perplexity]
    foretold = curve.forecast
    name = shorten(str(Path(path).parent))

    def paint(axes: Axes) -> None:
        axes.plot(minutes, values, "o-", color=COLORS[0], label="measured")
        if foretold is not None:
            below, above = foretold.perplexity - foretold.low, foretold.high - foretold.perplexity
            axes.errorbar(
                [minutes[-1]],
                [foretold.perplexity],
                [[max(0.0, below)], [max(0.0, above)]],
                fmt="s",
                color=COLORS[1],
                capsize=4,
                label="foretold",
            )
        axes.set(xlabel="minutes of learning", ylabel="perplexity, held-out text")
        axes.legend()

    said = "" if foretold is None else f"; {foretold.perplexity:.2f} was foretold"
    return draw(
        paint,
        name=f"learning-{slug(name)}",
        title=f"Recovery: {name}",
        caption="What the first minutes foretold for the end stands at the end, with its range.",
        alt=f"Perplexity went from {values[0]:.2f} to {values[-1]:.2f} in {minutes[-1]:.1f} "
        f"minutes{said}.",
    )
