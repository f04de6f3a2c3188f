"""The published search: shift mutations, staged selection, elitism.

Paper: https://arxiv.org/abs/2503.09657, section 3.4, after EvoPress.  A generation makes
mutants of one parent, scores them on few tokens, the survivors on more, the last ones and
the parent on many; the best becomes the parent.  We differ: mutants are never copies of the
parent, no loop is unbounded, and all sites exchange cost unless groups have limits of their
own (see `moves.py`).
"""

from dataclasses import dataclass
from random import Random

from lightstride.errors import ConfigError
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.moves import Moves, mutants
from lightstride.search.result import GenerationReport, OnGeneration, SearchResult, no_report
from lightstride.search.space import LevelIndices, P


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
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


def evolve(
    moves: Moves[P],
    centre: P,
    settings: EvolutionSettings,
    log: EvaluationLog[P],
    seed: int,
    num_windows: int,
    on_generation: OnGeneration[P] = no_report,
) -> SearchResult[P]:
    """The parent after the last generation; `num_windows` is the number of search windows."""
    random = Random(seed)
    parent = moves.repair(moves.levels(centre), random.choice)
    fitness = float("inf")
    for generation in range(settings.generations):
        first = random.randrange(num_windows) if settings.fresh else 0
        children = mutants(moves, parent, settings.offspring, random)
        parent, fitness = select(moves, parent, children, settings, log, generation, first)
        plan = moves.plan(parent)
        on_generation(
            GenerationReport(generation + 1, settings.generations, plan, fitness, log.tokens)
        )
    return SearchResult(moves.plan(parent), fitness, log.tokens)


def select(
    moves: Moves[P],
    parent: LevelIndices,
    children: list[LevelIndices],
    settings: EvolutionSettings,
    log: EvaluationLog[P],
    generation: int,
    first_window: int,
) -> tuple[LevelIndices, float]:
    """The best of parent and children after all stages, and its fitness in the last one."""
    pool = children
    ranked: list[tuple[float, int, LevelIndices]] = []
    for stage, (tokens, survivors) in enumerate(
        zip(settings.tokens, settings.survivors, strict=True)
    ):
        if stage == len(settings.tokens) - 1:
            pool = [parent, *pool]
        note = {"generation": generation, "stage": stage}
        scores = log([moves.plan(levels) for levels in pool], Sample(tokens, first_window), note)
        ranked = sorted(
            (score, i, levels) for i, (score, levels) in enumerate(zip(scores, pool, strict=True))
        )
        pool = [levels for _, _, levels in ranked[:survivors]]
    return pool[0], ranked[0][0]
