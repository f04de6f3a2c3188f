"""The report's pictures: each a PNG with the words that stand in for it.

Drawn narrow, so that their text can be read on a phone.  Colors are those of Okabe and Ito, which
color-blind readers can tell apart; no line is told from another by color alone.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lightstride.report.facts import Block, Evaluation, Facts, ModelFacts, shorten
from lightstride.results import MIB

matplotlib.use("Agg")

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PALE = "#DDE3E8"
WIDTH = 5.0
STYLE = Path(__file__).with_name("charts.mplstyle")
MILLION = 1e6


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    name: str
    """Its file name without .png."""
    title: str
    caption: str
    """How to read it."""
    alt: str
    """Its contents, in words with numbers."""
    png: bytes

    @property
    def width(self) -> int:
        """In pixels: the file's own bytes say so."""
        return int.from_bytes(self.png[16:20])

    @property
    def height(self) -> int:
        """In pixels."""
        return int.from_bytes(self.png[20:24])


def draw(
    paint: Callable[..., None],
    *,
    name: str,
    title: str,
    caption: str,
    alt: str,
    rows: int = 1,
    height: float = 3,
) -> Picture:
    """A picture whose axes `paint` fills."""
    with style.context(STYLE):
        figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        paint(*figure.subplots(rows, 1, squeeze=False)[:, 0])
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=160, metadata={"Software": None})
    return Picture(name, title, caption, alt, buffer.getvalue())


def pictures(facts: Facts) -> list[Picture]:
    """Every picture that there are numbers for."""
    drawn = [*width_pictures(facts), *search_pictures(facts)]
    for picture in (quality_picture(facts), speed_picture(facts), steps_picture(facts)):
        if picture is not None:
            drawn.append(picture)
    return drawn


def width_pictures(facts: Facts) -> list[Picture]:
    """Kept width of every block, one picture a pruned model."""
    return [
        width_picture(model, model.plan, model.dense_plan)
        for model in facts.models
        if model.plan is not None and model.dense_plan is not None and model.sparsity
    ]


def width_picture(model: ModelFacts, kept: Sequence[Block], dense: Sequence[Block]) -> Picture:
    """Query heads, KV heads and channels that stay, as shares of the dense model's."""
    heads = [100 * k.heads / d.heads for k, d in zip(kept, dense, strict=True)]
    groups = [100 * k.kv_heads / d.kv_heads for k, d in zip(kept, dense, strict=True)]
    channels = [100 * k.channels / d.channels for k, d in zip(kept, dense, strict=True)]
    places = list(range(len(kept)))

    def paint(attention: Axes, ffn: Axes) -> None:
        for axes, values, color in ((attention, heads, COLORS[0]), (ffn, channels, COLORS[1])):
            axes.bar(places, [100] * len(places), color=PALE, width=0.85)
            axes.bar(places, values, color=color, width=0.85)
            axes.set(ylim=(0, 100), xlim=(-0.6, len(places) - 0.4))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(visible=False, axis="x")
        attention.plot(places, groups, "k_", markersize=7, markeredgewidth=2, label="KV heads")
        attention.legend(loc="lower right", bbox_to_anchor=(1, 0.98), borderpad=0)
        attention.set_ylabel("query heads, %")
        ffn.set(ylabel="FFN channels, %", xlabel="block")

    alt = (
        f"Kept width of {model.name} by block. Query heads: {span(heads)}; KV heads: "
        f"{span(groups)}; FFN channels: {span(channels)} of the dense model's."
    )
    return draw(
        paint,
        name=f"width-{slug(model.name)}",
        title=f"Kept width of each block: {model.name}",
        caption="Colored: the share that stays. Pale: what is gone. Dashes: KV heads that stay.",
        alt=alt,
        rows=2,
        height=2.2,
    )


def span(values: Sequence[float]) -> str:
    """Lowest, mean and highest of percentages."""
    mean = sum(values) / len(values)
    return f"{min(values):.0f}% to {max(values):.0f}%, {mean:.0f}% on average"


def search_pictures(facts: Facts) -> list[Picture]:
    """Progress of every search."""
    return [
        search_picture(folder, evaluations, number)
        for number, (folder, evaluations) in enumerate(facts.searches.items(), start=1)
        if evaluations
    ]


def search_picture(folder: str, evaluations: Sequence[Evaluation], number: int) -> Picture:
    """Fitness of all candidates, and the best of each generation, over the tokens evaluated."""
    scopes = list(dict.fromkeys(one.scope for one in evaluations))
    total = sum(one.tokens for one in evaluations)
    curves = {scope: search_curve(evaluations, scope) for scope in scopes}

    def paint(axes: Axes) -> None:
        for index, (scope, (dots, best)) in enumerate(curves.items()):
            color = COLORS[index % len(COLORS)]
            axes.plot(*zip(*dots, strict=True), ".", color=color, alpha=0.2, markersize=4)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(
                *zip(*best, strict=True), marker + "-", color=color, markersize=4, label=scope
            )
        low = min(y for dots, _ in curves.values() for _, y in dots)
        best_high = max(y for _, best in curves.values() for _, y in best)
        axes.set(xlabel="million tokens evaluated", ylabel="fitness, lower is better")
        axes.set_ylim(low - 0.1 * (best_high - low or 1), best_high + 0.5 * (best_high - low or 1))
        if len(curves) > 1:
            axes.legend()

    _, best = list(curves.values())[-1]
    place = shorten(folder)
    alt = (
        f"Search progress in {place}: {len(evaluations):,} evaluations of {total:,} tokens; the "
        f"best fitness went from {best[0][1]:.4g} to {best[-1][1]:.4g} in the last search."
    )
    return draw(
        paint,
        name=f"search-{number}",
        title=f"Search progress: {place}",
        caption="Dots: candidates, each on the most tokens of its search. Lines: the best of "
        "each generation.",
        alt=alt,
    )


Point = tuple[float, float]


def search_curve(evaluations: Sequence[Evaluation], scope: str) -> tuple[list[Point], list[Point]]:
    """All candidates read on most tokens, and the best of each generation, over million tokens."""
    longest = max(one.tokens for one in evaluations if one.scope == scope)
    dots: list[Point] = []
    best: dict[int, Point] = {}
    tokens = 0
    for one in evaluations:
        tokens += one.tokens
        if one.scope == scope and one.tokens == longest:
            dots.append((tokens / MILLION, one.fitness))
            known = best.get(one.generation)
            best[one.generation] = (
                tokens / MILLION,
                one.fitness if known is None else min(known[1], one.fitness),
            )
    return dots, list(best.values())


def quality_picture(facts: Facts) -> Picture | None:
    """Perplexity and accuracy against size."""
    text = facts.text()
    perplexity = [
        (m, m.parameters / MILLION, m.perplexities[text])
        for m in facts.models
        if m.parameters is not None and text in m.perplexities
    ]
    accuracy = [
        (m, m.parameters / MILLION, 100 * m.accuracy)
        for m in facts.models
        if m.parameters is not None and m.accuracy is not None
    ]
    panels = [
        (points, label, lower)
        for points, label, lower in (
            (perplexity, "perplexity (log)", True),
            (accuracy, "mean accuracy, %", False),
        )
        if len(points) > 1
    ]
    if not panels:
        return None

    def paint(*all_axes: Axes) -> None:
        for axes, (points, label, lower) in zip(all_axes, panels, strict=True):
            scatter(axes, points, facts.models)
            front = frontier([(x, y) for _, x, y in points], lower_is_better=lower)
            axes.plot(*zip(*front, strict=True), "--", color="#888888", linewidth=1, zorder=1)
            axes.set(ylabel=label, xlabel="million parameters")
            if lower:
                axes.set_yscale("log")
                plain_log(axes)
        all_axes[0].legend()

    words = []
    for points, label, _ in panels:
        named = "; ".join(f"{m.name} ({x:.0f} M): {y:.4g}" for m, x, y in points)
        words.append(f"{label.removesuffix(' (log)')}: {named}")
    over = "" if text is None else f" (perplexity on {text})"
    title = f"Quality against size{over}"
    return draw(
        paint,
        name="quality",
        title=title,
        caption="Dashed: models that no smaller one equals.",
        alt=f"{title}. {'. '.join(words)}.",
        rows=len(panels),
    )


def scatter(
    axes: Axes, points: Sequence[tuple[ModelFacts, float, float]], models: Sequence[ModelFacts]
) -> None:
    """One marked and named point a model; the axis leaves room for all models."""
    for model, x, y in points:
        index = models.index(model)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot([x], [y], marker, color=color, markersize=8, label=model.name, zorder=3)
    sizes = [m.parameters / MILLION for m in models if m.parameters is not None]
    room = 0.08 * (max(sizes) - min(sizes) or 1)
    axes.margins(0.12)
    axes.set_xlim(min(sizes) - room, max(sizes) + room)


def frontier(points: Sequence[Point], *, lower_is_better: bool) -> list[Point]:
    """Points that no smaller one equals or beats, smallest first."""
    front: list[Point] = []
    for x, y in sorted(points):
        if not front or (y < front[-1][1] if lower_is_better else y > front[-1][1]):
            front.append((x, y))
    return front


def speed_picture(facts: Facts) -> Picture | None:
    """Decoding speed against the bytes of the weights, a line for each batch size."""
    models = [m for m in facts.models if m.loads and m.weight_bytes is not None]
    if not models:
        return None
    prompt = min(load.prompt for m in models for load in m.loads)
    lines: dict[int, list[tuple[float, float, float, float]]] = {}
    for model in models:
        assert model.weight_bytes is not None
        for load in model.loads:
            if load.prompt == prompt:
                speed = load.decode_tokens_per_second
                point = (model.weight_bytes / MIB, speed.median, speed.low, speed.high)
                lines.setdefault(load.batch, []).append(point)

    def paint(axes: Axes) -> None:
        for index, (batch, points) in enumerate(sorted(lines.items())):
            x, y, low, high = zip(*sorted(points), strict=True)
            errors = [
                [b - a for a, b in zip(low, y, strict=True)],
                [b - a for a, b in zip(y, high, strict=True)],
            ]
            look = MARKERS[index % len(MARKERS)] + "-"
            color = COLORS[index % len(COLORS)]
            axes.errorbar(x, y, errors, fmt=look, color=color, capsize=3, label=f"batch {batch}")
        axes.set(xlabel="MiB of weights", ylabel="decoded tokens a second", yscale="log")
        plain_log(axes)
        axes.margins(0.1)
        axes.legend()

    words = "; ".join(
        f"batch {batch}: " + ", ".join(f"{y:.0f} at {x:.0f} MiB" for x, y, *_ in sorted(points))
        for batch, points in sorted(lines.items())
    )
    title = f"Decoding speed against size (prompts of {prompt} tokens)"
    return draw(
        paint,
        name="speed",
        title=title,
        caption="Medians of runs taken in turn; whiskers: the lowest and the highest.",
        alt=f"{title}: tokens a second, {words}.",
    )


def steps_picture(facts: Facts) -> Picture | None:
    """Tokens per step of the base model, if any model emits more than one."""
    found = {m.name: max(load.tokens_per_step for load in m.loads) for m in facts.models if m.loads}
    if max(found.values(), default=1) <= 1:
        return None

    def paint(axes: Axes) -> None:
        bars = axes.barh(list(found), list(found.values()), color=COLORS[0])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set(xlabel="tokens per step of the base model", xlim=(0, 1.15 * max(found.values())))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    words = ", ".join(f"{name}: {value:.2f}" for name, value in found.items())
    return draw(
        paint,
        name="steps",
        title="Tokens per step",
        caption="Tokens that one forward of the base model brings, over all loads measured.",
        alt=f"Tokens per step. {words}.",
        height=1 + 0.4 * len(found),
    )


def plain_log(axes: Axes) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def slug(name: str) -> str:
    """A name that can be part of a file's name."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
