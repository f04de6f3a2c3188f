"""The published search: shift mutations, staged selection, elitism.

Paper: https://arxiv.org/abs/2503.09657, section 3.4, after EvoPress.  A generation makes
offspring of one parent, scores them on few tokens, the survivors on more, the last ones and
the parent on many; the best becomes the parent.  We differ: offspring are never copies of the
parent, no loop is unbounded, and exchange between attention and FFN is on unless the split is
fixed (see `moves.py`).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random

from lightstride.errors import ConfigError
from lightstride.models.shapes import Site
from lightstride.prune.search.evaluation_log import Ledger, Sample
from lightstride.prune.search.moves import Levels, Moves, offspring
from lightstride.prune.space.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Settings of the published search; the defaults are the paper's."""

    generations: int = 50
    offspring: int = 128
    tokens: tuple[int, ...] = (2048, 16_384, 131_072)
    """Tokens each stage reads."""
    survivors: tuple[int, ...] = (16, 4, 1)
    """Candidates each stage leaves."""
    fresh: bool = True
    """Each generation reads other tokens, as published; else always the same."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.survivors) or not self.tokens:
            raise ConfigError(
                f"{len(self.tokens)} stages of tokens but {len(self.survivors)} of survivors"
            )
        if min(*self.tokens, *self.survivors, self.generations, self.offspring) < 1:
            raise ConfigError("generations, offspring, tokens and survivors must be at least 1")


@dataclass(frozen=True)
class Found:
    """What a search found."""

    plan: Plan
    fitness: float
    """On the last stage's sample."""
    tokens: int
    """Tokens evaluated so far, over all candidates."""
    slopes: Mapping[Site, float] = field(default_factory=dict)
    """What the search came to believe of each site: how much a unit of its loss is felt."""


@dataclass(frozen=True)
class News:
    """What a search tells after each generation."""

    generation: int
    generations: int
    """How many there are at most."""
    plan: Plan
    """The best so far."""
    fitness: float
    tokens: int
    """Evaluated so far."""


Report = Callable[[News], None]


def silent(news: News) -> None:
    """Tell nobody."""


Reporter = Callable[[str], AbstractContextManager[Report]]
"""Given the title of a search: who is told while it lasts."""


def unreported(title: str) -> AbstractContextManager[Report]:
    """Nobody."""
    return nullcontext(silent)


def evolve(
    moves: Moves,
    centre: Plan,
    settings: Evolution,
    ledger: Ledger,
    seed: int,
    num_windows: int,
    report: Report = silent,
) -> Found:
    """The parent after the last generation; `num_windows` is how many search windows there are."""
    random = Random(seed)
    parent = moves.fit(moves.levels(centre), random.choice)
    fitness = float("inf")
    for generation in range(settings.generations):
        first = random.randrange(num_windows) if settings.fresh else 0
        children = offspring(moves, parent, settings.offspring, random)
        parent, fitness = select(moves, parent, children, settings, ledger, generation, first)
        plan = moves.plan(parent)
        report(News(generation + 1, settings.generations, plan, fitness, ledger.tokens))
    return Found(moves.plan(parent), fitness, ledger.tokens)


def select(
    moves: Moves,
    parent: Levels,
    children: list[Levels],
    settings: Evolution,
    ledger: Ledger,
    generation: int,
    first: int,
) -> tuple[Levels, float]:
    """The best of parent and children after all stages, and its fitness in the last one."""
    pool = children
    ranked: list[tuple[float, int, Levels]] = []
    for stage, (tokens, survivors) in enumerate(
        zip(settings.tokens, settings.survivors, strict=True)
    ):
        if stage == len(settings.tokens) - 1:
            pool = [parent, *pool]
        note = {"generation": generation, "stage": stage}
        scores = ledger([moves.plan(levels) for levels in pool], Sample(tokens, first), note)
        ranked = sorted(
            (score, i, levels) for i, (score, levels) in enumerate(zip(scores, pool, strict=True))
        )
        pool = [levels for _, _, levels in ranked[:survivors]]
    return pool[0], ranked[0][0]
