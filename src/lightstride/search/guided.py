"""The default search: known losses guide it, so that few evaluations are enough.

1. Every site is probed once: one level down from the centre, on few tokens.  The differences
   tell how strongly the fitness follows each site's loss, which is known for all levels.  A
   search that is given the slopes of an earlier one starts from those instead.
2. Offspring are optima: for slopes drawn from the posterior (`surrogate.py`), dynamic
   programming gives the best plan within the budget and within a radius of levels around the
   parent.  The first uses the expected slopes, and radii differ, so that every generation
   holds steps of many lengths.
3. Offspring race: all on few tokens, the best ones on more, whose fitness is averaged in; the
   parent always runs to the end.  Every result improves the posterior.

Costs finer than the knapsack's grid are rounded up to it, so that its optimum may leave some of
the budget unspent.  `Moves.repair` then grows the plan at the sites with the largest slopes; the
result is within the budget, and the optimum of the model up to one cell of the grid a site.

Related: trust-region Bayesian optimization with Thompson sampling (TuRBO, arXiv 1910.01739).
The published search (`evolution.py`) draws blindly and forgets its measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from lightstride.errors import ConfigError
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.moves import Moves
from lightstride.search.result import GenerationReport, OnGeneration, SearchResult, no_report
from lightstride.search.space import LevelIndices, P
from lightstride.search.surrogate import (
    Array,
    Observation,
    Posterior,
    PriorSettings,
    knapsack,
    posterior,
)

Losses = Sequence[Sequence[float]]
"""Loss of every site at every level, known before the search, in the order of the space."""


@dataclass(frozen=True, kw_only=True)
class GuidedSettings:
    """Settings of the default search."""

    generations: int = 6
    offspring: int = 12
    probe_tokens: int = 1024
    tokens: tuple[int, ...] = (1024, 3072, 4096)
    """Tokens each stage of a race adds."""
    survivors: tuple[int, ...] = (4, 2, 1)
    """Candidates each stage leaves."""
    temperature: float = 1.0
    """Scale of the slopes' deviation from their means when they are drawn."""
    patience: int = 2
    """Generations without a better plan after which the search ends."""
    prior: PriorSettings = field(default_factory=PriorSettings)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.survivors) or not self.tokens:
            raise ConfigError(
                f"{len(self.tokens)} stages of tokens but {len(self.survivors)} of survivors"
            )
        if min(*self.tokens, *self.survivors, self.offspring, self.probe_tokens) < 1:
            raise ConfigError("offspring, tokens and survivors must be at least 1")


@dataclass
class GuidedSearch(Generic[P]):
    """One search; `run` is the whole of it."""

    moves: Moves[P]
    losses: Losses
    settings: GuidedSettings
    log: EvaluationLog[P]
    window: int
    """Tokens of one search window: stages read one window after the other."""
    prior_slopes: Sequence[float] = ()
    """Every site's slope over the common one, as an earlier search found them; or none."""
    first_window: int = 0
    """The first search window to read: other rounds may have read the ones before it."""

    def __post_init__(self) -> None:
        self.prior_S = np.array(self.prior_slopes) if len(self.prior_slopes) else None
        self.observations: list[Observation] = []
        self.samples = stage_samples(self.settings.tokens, self.window, self.first_window)

    def run(
        self, centre: P, seed: int, on_generation: OnGeneration[P] = no_report
    ) -> SearchResult[P]:
        """The best plan found from a centre."""
        random = np.random.default_rng(seed)
        parent = self.moves.repair(self.moves.levels(centre), lambda sites: sites[0])
        fitness = self.full_fitness(parent, {"generation": 0})
        if self.prior_S is None:
            self.probe(parent)
        idle = 0
        for generation in range(1, self.settings.generations + 1):
            children = self.propose(parent, fitness, random)
            if not children:
                break
            winner, its_fitness = self.race(parent, children, generation)
            idle = 0 if its_fitness < fitness else idle + 1
            if its_fitness < fitness:
                parent, fitness = winner, its_fitness
            plan, most = self.moves.plan(parent), self.settings.generations
            on_generation(GenerationReport(generation, most, plan, fitness, self.log.tokens))
            if idle == self.settings.patience:
                break
        slopes = self.site_slopes(parent, fitness)
        return SearchResult(self.moves.plan(parent), fitness, self.log.tokens, slopes)

    def site_slopes(self, parent: LevelIndices, fitness: float) -> tuple[float, ...]:
        """Every site's expected slope over the common one; never negative."""
        mean_S = np.maximum(self.posterior(parent, fitness).mean_S, 0.0)
        return tuple(mean_S.tolist())

    def full_fitness(self, levels: LevelIndices, note: Mapping[str, object]) -> float:
        """Fitness over all stages' tokens."""
        plan = self.moves.plan(levels)
        values = [self.log([plan], sample, note)[0] for sample in self.samples]
        return mean(values, self.samples)

    def probe(self, parent: LevelIndices) -> None:
        """Observe every site one level down, or up if there is none, all else like the parent."""
        probes = []
        for site, level in enumerate(parent):
            other = self.moves.next_cheaper(level, site)
            other = self.moves.next_dearer(level, site) if other is None else other
            if other is not None:
                probes.append((*parent[:site], other, *parent[site + 1 :]))
        sample = Sample(self.settings.probe_tokens, self.first_window)
        self.observe(parent, probes, sample, {"generation": 0, "role": "probe"})

    def observe(
        self,
        parent: LevelIndices,
        children: Sequence[LevelIndices],
        sample: Sample,
        note: Mapping[str, object],
    ) -> list[float]:
        """Fitness of the parent and of every child on a sample; differences are observations."""
        plans = [self.moves.plan(levels) for levels in (parent, *children)]
        first, *others = self.log(plans, sample, note)
        for levels, value in zip(children, others, strict=True):
            self.observations.append(Observation(levels, parent, value - first, sample.tokens))
        return [first, *others]

    def posterior(self, parent: LevelIndices, fitness: float) -> Posterior:
        """Slopes given all observations, as seen from a parent."""
        seen, prior = self.observations, self.settings.prior
        return posterior(self.losses, parent, fitness, seen, prior, self.prior_S)

    def propose(
        self, parent: LevelIndices, fitness: float, random: np.random.Generator
    ) -> list[LevelIndices]:
        """Distinct optima for slopes and radii that differ; fewer if these run out."""
        beliefs = self.posterior(parent, fitness)
        widest = max(len(site) for site in self.losses)
        found: dict[LevelIndices, None] = {}
        for attempt in range(4 * self.settings.offspring):
            slopes_S = beliefs.draw(random, self.settings.temperature if attempt else 0.0)
            radius = widest if attempt == 0 else int(random.integers(1, max(widest, 2)))
            child = self.best_within(parent, np.maximum(slopes_S, 0.0), radius)
            if child != parent:
                found[child] = None
            if len(found) == self.settings.offspring:
                break
        return list(found)

    def best_within(self, parent: LevelIndices, slopes_S: Array, radius: int) -> LevelIndices:
        """The plan of least expected fitness within the limits and a radius around the parent."""
        reach = [
            range(max(level - radius, 0), min(level + radius, len(site) - 1) + 1)
            for level, site in zip(parent, self.losses, strict=True)
        ]
        costs = [[c[i] for i in r] for c, r in zip(self.moves.costs, reach, strict=True)]
        values = [
            [float(slope) * site[i] for i in r]
            for slope, site, r in zip(slopes_S, self.losses, reach, strict=True)
        ]
        picked = self.best_levels(costs, values)
        levels = tuple(r[i] for r, i in zip(reach, picked, strict=True))
        return self.moves.repair(levels, lambda sites: max(sites, key=lambda s: slopes_S[s]))

    def best_levels(self, costs: list[list[int]], values: list[list[float]]) -> list[int]:
        """Places of the best levels, each pool within its own limit."""
        rest = self.moves.limit - sum(self.moves.group_limits.values())
        picked = [0] * len(costs)
        for pool in self.moves.pool_names:
            limit = rest if pool is None else self.moves.group_limits[pool]
            sites = [i for i, its_pool in enumerate(self.moves.pools) if its_pool == pool]
            best = knapsack([costs[i] for i in sites], [values[i] for i in sites], limit)
            for i, level in zip(sites, best, strict=True):
                picked[i] = level
        return picked

    def race(
        self, parent: LevelIndices, children: list[LevelIndices], generation: int
    ) -> tuple[LevelIndices, float]:
        """The best child that ran to the end, and its fitness over all stages' tokens."""
        pool = children
        sums: dict[LevelIndices, list[float]] = {levels: [] for levels in children}
        for stage, (sample, survivors) in enumerate(
            zip(self.samples, self.settings.survivors, strict=True)
        ):
            note = {"generation": generation, "stage": stage}
            _, *values = self.observe(parent, pool, sample, note)
            for levels, value in zip(pool, values, strict=True):
                sums[levels].append(value)
            pool = sorted(pool, key=lambda each: mean(sums[each], self.samples))[:survivors]
        return pool[0], mean(sums[pool[0]], self.samples)


def stage_samples(tokens: Sequence[int], window: int, first_window: int = 0) -> list[Sample]:
    """One sample a stage, each starting where the one before ends."""
    samples = []
    for count in tokens:
        samples.append(Sample(count, first_window))
        first_window += -(-count // window)
    return samples


def mean(values: Sequence[float], samples: Sequence[Sample]) -> float:
    """Mean over the samples that have a value, by tokens."""
    pairs = list(zip(values, samples, strict=False))
    return sum(v * s.tokens for v, s in pairs) / sum(s.tokens for _, s in pairs)
