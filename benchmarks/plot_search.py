"""Draw what `search.py --compare --output FILE` measured: fitness on unseen text against tokens.

    python benchmarks/plot_search.py results/search-compare.json results/search-compare.png

Both searches start from the same centre, the uniform plan.  A search's gain is how far the plan
it holds is below the centre's divergence, on text that neither search read.  The last line of
stdout, which is also the picture's headline, says what the fast preset has gained by the time it
has spent a tenth of the published search's tokens, and of its time.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes

from lightstride.errors import DataError
from lightstride.report.charts import COLORS, MARKERS, Picture, draw
from lightstride.results import read_result

PRESETS = ("fast", "paper")
PART = 10
"""The share looked at is 1 / PART."""

Spent = Literal["tokens", "seconds"]


@dataclass(frozen=True)
class Curve:
    """One search: what it had spent after each generation, and what its plan was worth."""

    tokens: Sequence[float]
    seconds: Sequence[float]
    unseen: Sequence[float]

    def spent(self, coin: Spent) -> Sequence[float]:
        """Its tokens or its seconds."""
        return self.tokens if coin == "tokens" else self.seconds


@dataclass(frozen=True)
class Comparison:
    """Two searches from one centre."""

    centre: float
    fast: Curve
    paper: Curve

    def share(self, coin: Spent) -> float:
        """Of the published search's whole gain, the fast one's at a tenth of its expense."""
        allowed = self.paper.spent(coin)[-1] / PART
        held = self.centre
        for spent, unseen in zip(self.fast.spent(coin), self.fast.unseen, strict=True):
            if spent <= allowed:
                held = unseen
        return (self.centre - held) / (self.centre - self.paper.unseen[-1])

    @property
    def headline(self) -> str:
        """Both shares in one line."""
        return (
            f"The fast preset has {100 * self.share('tokens'):.0f}% of the paper preset's gain "
            f"at 1/{PART} of its tokens, {100 * self.share('seconds'):.0f}% at 1/{PART} of its time"
        )


def read_comparison(path: Path) -> Comparison:
    """What a file of `search.py --compare` says; raises DataError if it is another's."""
    numbers: Any = read_result(path)["numbers"]
    try:
        centre, fast, paper = (numbers[name] for name in ("centre", *PRESETS))
        found = Comparison(float(centre), curve(fast), curve(paper))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} compares no searches; write one with search.py --compare --output"
        ) from error
    if found.paper.unseen[-1] >= found.centre:
        raise DataError(f"{path}: the paper preset gained nothing, so there is no share of it")
    return found


def curve(points: Sequence[Mapping[str, float]]) -> Curve:
    """A search's points, in the order of its generations; ValueError if there are none."""
    if not points:
        raise ValueError("no generations")
    columns = [[float(p[key]) for p in points] for key in ("tokens", "seconds", "unseen")]
    return Curve(*columns)


def picture(found: Comparison) -> Picture:
    """Both curves over a logarithmic axis."""
    curves = {"fast": found.fast, "paper": found.paper}
    start = min(each.tokens[0] for each in curves.values()) / 2

    def paint(axes: Axes) -> None:
        axes.axhline(found.centre, color="#888888", linestyle="--", linewidth=1, zorder=1)
        for index, (name, each) in enumerate(curves.items()):
            tokens, values = [start, *each.tokens], [found.centre, *each.unseen]
            label = f"{name} preset ({each.seconds[-1]:,.0f} s)"
            look = MARKERS[index] + "-"
            axes.plot(
                tokens,
                values,
                look,
                color=COLORS[index],
                drawstyle="steps-post",
                markersize=4,
                label=label,
            )
        axes.set(xlabel="tokens evaluated", ylabel="KL on unseen text, nats")
        axes.set_xscale("log")
        axes.set_title(found.headline.replace(" gain ", " gain\n"), fontsize="small")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    words = "; ".join(
        f"{name}: {each.unseen[-1]:.4g} after {each.tokens[-1]:,.0f} tokens and "
        f"{each.seconds[-1]:,.0f} seconds"
        for name, each in curves.items()
    )
    return draw(
        paint,
        name="search-compare",
        title="Both searches from one centre",
        caption="The best plan after each generation, on unseen text. Dashed: the centre.",
        alt=f"Divergence on unseen text, from {found.centre:.4g}. {words}. {found.headline}.",
        height=3.4,
    )


def write_picture(drawn: Picture, path: Path) -> None:
    """Write a PNG that has its name only once it is whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(drawn.png)
    temporary.replace(path)


def main() -> None:
    """Draw the picture that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="what search.py --compare --output wrote")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    flags = parser.parse_args()
    found = read_comparison(flags.result)
    write_picture(picture(found), flags.picture)
    print(found.headline)


if __name__ == "__main__":
    main()
