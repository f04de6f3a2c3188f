"""The default search: what is known guides it, so that few evaluations are enough.

1. Every site is probed once: one level down from the centre, on few tokens.  That tells how
   much the fitness feels each site's local loss, which the supernet knows for all levels.  A
   search that is told what an earlier round came to believe starts from that instead.
2. Offspring are exact optima: for slopes drawn from what is believed now (`surrogate.py`),
   dynamic programming gives the best plan within the budget and within a radius of levels
   around the parent.  The first uses the expected slopes, and radii differ, so that every
   generation holds steps of many lengths.
3. Offspring race: all on few tokens, the best ones on more, adding to what was measured; the
   parent always runs to the end.  Every result improves the beliefs.

Related: trust-region Bayesian optimization with Thompson sampling (TuRBO, arXiv 1910.01739).
The published search (`evolution.py`) draws blindly and forgets what it measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightstride.errors import ConfigError
from lightstride.models.shapes import Shape, Site
from lightstride.prune.search.evaluation_log import Ledger, Sample
from lightstride.prune.search.evolution import Found, News, Report, silent
from lightstride.prune.search.moves import Levels, Moves
from lightstride.prune.search.surrogate import (
    Array,
    Observation,
    Posterior,
    Trust,
    knapsack,
    posterior,
)
from lightstride.prune.space.plan import Plan

Losses = Mapping[tuple[Site, Shape], float]
"""Local loss of every site at every shape, from the supernet."""


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Settings of the default search."""

    generations: int = 6
    offspring: int = 12
    probe_tokens: int = 1024
    tokens: tuple[int, ...] = (1024, 3072, 4096)
    """Tokens each stage of a race adds."""
    survivors: tuple[int, ...] = (4, 2, 1)
    """Candidates each stage leaves."""
    temperature: float = 1.0
    """How widely slopes are drawn around what is expected."""
    patience: int = 2
    """Generations without a better plan after which the search ends."""
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.survivors) or not self.tokens:
            raise ConfigError(
                f"{len(self.tokens)} stages of tokens but {len(self.survivors)} of survivors"
            )
        if min(*self.tokens, *self.survivors, self.offspring, self.probe_tokens) < 1:
            raise ConfigError("offspring, tokens and survivors must be at least 1")


@dataclass
class GuidedSearch:
    """One search; `run` is the whole of it."""

    moves: Moves
    losses: Losses
    settings: Guided
    ledger: Ledger
    window: int
    """Tokens of one search window: stages read one window after the other."""
    known: Mapping[Site, float] = field(default_factory=dict)
    """Slopes over the common one that an earlier search found, for all sites or none."""
    first: int = 0
    """The first search window to read: other rounds may have read the ones before it."""

    def __post_init__(self) -> None:
        space = self.moves.space
        self.table = [
            [self.losses[site, shape] for shape in space.shapes[site]] for site in space.sites
        ]
        self.known_S = np.array([self.known[s] for s in space.sites]) if self.known else None
        self.observations: list[Observation] = []
        self.samples = stage_samples(self.settings.tokens, self.window, self.first)

    def run(self, centre: Plan, seed: int, report: Report = silent) -> Found:
        """The best plan found from a centre."""
        random = np.random.default_rng(seed)
        parent = self.moves.fit(self.moves.levels(centre), lambda sites: sites[0])
        fitness = self.whole(parent, {"generation": 0})
        if self.known_S is None:
            self.probe(parent)
        idle = 0
        for generation in range(1, self.settings.generations + 1):
            children = self.offspring(parent, fitness, random)
            if not children:
                break
            winner, its_fitness = self.race(parent, children, generation)
            idle = 0 if its_fitness < fitness else idle + 1
            if its_fitness < fitness:
                parent, fitness = winner, its_fitness
            plan, most = self.moves.plan(parent), self.settings.generations
            report(News(generation, most, plan, fitness, self.ledger.tokens))
            if idle == self.settings.patience:
                break
        slopes = self.slopes(parent, fitness)
        return Found(self.moves.plan(parent), fitness, self.ledger.tokens, slopes)

    def slopes(self, parent: Levels, fitness: float) -> dict[Site, float]:
        """What is believed of every site, over what is common to all; never negative."""
        mean_S = np.maximum(self.beliefs(parent, fitness).mean_S, 0.0)
        return dict(zip(self.moves.space.sites, mean_S.tolist(), strict=True))

    def whole(self, levels: Levels, note: Mapping[str, object]) -> float:
        """Fitness over all stages' tokens."""
        plan = self.moves.plan(levels)
        values = [self.ledger([plan], sample, note)[0] for sample in self.samples]
        return mean(values, self.samples)

    def probe(self, parent: Levels) -> None:
        """Observe every site one level down, or up if there is none, all else like the parent."""
        probes = []
        for site, level in enumerate(parent):
            other = self.moves.lower(level, site)
            other = self.moves.raise_(level, site) if other is None else other
            if other is not None:
                probes.append((*parent[:site], other, *parent[site + 1 :]))
        sample = Sample(self.settings.probe_tokens, self.first)
        self.observe(parent, probes, sample, {"generation": 0, "role": "probe"})

    def observe(
        self, parent: Levels, children: Sequence[Levels], sample: Sample, note: Mapping[str, object]
    ) -> list[float]:
        """Fitness of the parent and of every child on a sample; differences become beliefs."""
        plans = [self.moves.plan(levels) for levels in (parent, *children)]
        first, *others = self.ledger(plans, sample, note)
        for levels, value in zip(children, others, strict=True):
            self.observations.append(Observation(levels, parent, value - first, sample.tokens))
        return [first, *others]

    def beliefs(self, parent: Levels, fitness: float) -> Posterior:
        """Slopes, as seen from a parent."""
        seen, trust = self.observations, self.settings.trust
        return posterior(self.table, parent, fitness, seen, trust, self.known_S)

    def offspring(
        self, parent: Levels, fitness: float, random: np.random.Generator
    ) -> list[Levels]:
        """Distinct optima for slopes and radii that differ; fewer if these run out."""
        beliefs = self.beliefs(parent, fitness)
        widest = max(len(site) for site in self.table)
        found: dict[Levels, None] = {}
        for attempt in range(4 * self.settings.offspring):
            slopes_S = beliefs.draw(random, self.settings.temperature if attempt else 0.0)
            radius = widest if attempt == 0 else int(random.integers(1, max(widest, 2)))
            child = self.optimum(parent, np.maximum(slopes_S, 0.0), radius)
            if child != parent:
                found[child] = None
            if len(found) == self.settings.offspring:
                break
        return list(found)

    def optimum(self, parent: Levels, slopes_S: Array, radius: int) -> Levels:
        """The plan of least expected fitness within the limit and a radius around the parent."""
        reach = [
            range(max(level - radius, 0), min(level + radius, len(site) - 1) + 1)
            for level, site in zip(parent, self.table, strict=True)
        ]
        costs = [[c[i] for i in r] for c, r in zip(self.moves.costs, reach, strict=True)]
        values = [
            [float(slope) * site[i] for i in r]
            for slope, site, r in zip(slopes_S, self.table, reach, strict=True)
        ]
        picked = self.best_levels(costs, values)
        levels = tuple(r[i] for r, i in zip(reach, picked, strict=True))
        return self.moves.fit(levels, lambda sites: max(sites, key=lambda s: slopes_S[s]))

    def best_levels(self, costs: list[list[int]], values: list[list[float]]) -> list[int]:
        """Places of the best levels; with a fixed split each kind has its own limit."""
        limit, attention = self.moves.limit, self.moves.fixed_attention
        if attention is None:
            return list(knapsack(costs, values, limit))
        picked = [0] * len(costs)
        for kind, its_limit in (("attention", attention), ("ffn", limit - attention)):
            sites = [i for i, its_kind in enumerate(self.moves.kinds) if its_kind == kind]
            best = knapsack([costs[i] for i in sites], [values[i] for i in sites], its_limit)
            for i, level in zip(sites, best, strict=True):
                picked[i] = level
        return picked

    def race(self, parent: Levels, children: list[Levels], generation: int) -> tuple[Levels, float]:
        """The best child that ran to the end, and its fitness over all stages' tokens."""
        pool = children
        sums: dict[Levels, list[float]] = {levels: [] for levels in children}
        for stage, (sample, survivors) in enumerate(
            zip(self.samples, self.settings.survivors, strict=True)
        ):
            note = {"generation": generation, "stage": stage}
            _, *values = self.observe(parent, pool, sample, note)
            for levels, value in zip(pool, values, strict=True):
                sums[levels].append(value)
            pool = sorted(pool, key=lambda each: mean(sums[each], self.samples))[:survivors]
        return pool[0], mean(sums[pool[0]], self.samples)


def stage_samples(tokens: Sequence[int], window: int, first: int = 0) -> list[Sample]:
    """One sample a stage, each starting where the one before ends."""
    samples = []
    for count in tokens:
        samples.append(Sample(count, first))
        first += -(-count // window)
    return samples


def mean(values: Sequence[float], samples: Sequence[Sample]) -> float:
    """Mean over the samples that have a value, by tokens."""
    pairs = list(zip(values, samples, strict=False))
    return sum(v * s.tokens for v, s in pairs) / sum(s.tokens for _, s in pairs)
