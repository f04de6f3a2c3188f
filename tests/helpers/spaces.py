"""Toy spaces and fitnesses that the tests of the searches share."""

import itertools
from collections.abc import Sequence
from random import Random

from lightstride.models.shapes import AttentionShape, FFNShape, Geometry
from lightstride.prune.space.budget import build_space, parameter_cost
from lightstride.prune.space.narrow import limit_for, uniform_plan
from lightstride.prune.space.plan import Plan, Space
from lightstride.prune.space.targets import Target
from lightstride.search.evaluation_log import Sample
from lightstride.search.moves import Moves


def geometry(num_blocks: int) -> Geometry:
    return Geometry(
        family="llama",
        hidden_size=16,
        head_dim=4,
        vocab_size=260,
        tied_head=True,
        attention=(AttentionShape(3, 3),) * num_blocks,
        ffn=(FFNShape(96),) * num_blocks,
        query_head_parameters=128,
        kv_head_parameters=128,
        channel_parameters=48,
    )


def toy(num_blocks: int, multiple: int = 8) -> Space:
    shapes = geometry(num_blocks)
    return build_space(
        shapes, Target(name="toy", channel_multiple=multiple), parameter_cost(shapes)
    )


def moves_at(space: Space, share: float, *, fixed: bool = False) -> tuple[Moves[Plan], Plan]:
    limit = limit_for(share, space.largest, space)
    centre = uniform_plan(space, share, limit)
    free = Moves(space, limit)
    attention = free.cost(free.levels(centre), "attention")
    return Moves(space, limit, {"attention": attention} if fixed else {}), centre


def ffn_step(space: Space) -> int:
    """Largest difference between neighboring costs of one FFN: how closely a budget is met."""
    return max(
        upper - lower
        for site in space.sites
        if site.kind == "ffn"
        for lower, upper in itertools.pairwise(space.costs[site])
    )


class Weighted:
    """A separable fitness: what each site loses, times a weight of its own."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        random = Random(seed)
        self.space = space
        self.weights = {site: random.uniform(0.2, 3.0) for site in space.sites}
        self.calls = 0

    def loss(self, plan: Plan) -> float:
        total = 0.0
        for site, shape in plan.shapes.items():
            gone = 1 - self.space.cost(site, shape) / max(self.space.costs[site])
            total += self.weights[site] * gone**2
        return total

    def __call__(self, plans: Sequence[Plan], sample: Sample) -> list[float]:
        self.calls += len(plans)
        return [self.loss(plan) for plan in plans]


def brute_force(moves: Moves[Plan], fitness: Weighted) -> float:
    levels = itertools.product(*(range(len(costs)) for costs in moves.costs))
    return min(fitness.loss(moves.plan(each)) for each in levels if moves.cost(each) <= moves.limit)
