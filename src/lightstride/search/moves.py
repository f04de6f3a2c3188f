"""Steps from plan to plan that never leave the budget.

Every step ends within the limit and, unless nothing can grow, so near to it that no site's next
level fits.  Every loop is bounded: costs only fall, then only rise.

Groups that have a limit of their own trade among their own sites alone; the sites of all other
groups trade with each other, and share the cost that the limited groups leave.

Paper: https://arxiv.org/abs/2503.09657, section 3.4 (sparsity shift).  We differ: a shift
exchanges true cost, between all sites unless groups have limits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Generic

from lightstride.errors import BudgetError
from lightstride.search.space import LevelIndices, P, Space


@dataclass(frozen=True)
class Moves(Generic[P]):
    """A space under a limit, with or without limits of single groups."""

    space: Space[P]
    limit: int
    group_limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of some groups: their sites trade with no other group's."""

    def __post_init__(self) -> None:
        together = sum(self.group_limits.values())
        if together > self.limit:
            raise BudgetError(f"groups may cost {together} together, more than {self.limit}")

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Costs of every site's levels, rising."""
        return self.space.level_costs

    @cached_property
    def pools(self) -> tuple[str | None, ...]:
        """The group of every site if that has a limit, else None: sites of one pool trade."""
        return tuple(group if group in self.group_limits else None for group in self.space.groups)

    @cached_property
    def pool_names(self) -> tuple[str | None, ...]:
        """All pools, the limited groups first."""
        return (*self.group_limits, None)

    def plan(self, levels: LevelIndices) -> P:
        """The plan that these level indices mean."""
        return self.space.plan(levels)

    def levels(self, plan: P) -> LevelIndices:
        """The level indices of a plan of this space."""
        return self.space.levels(plan)

    def cost(self, levels: LevelIndices, group: str | None = None) -> int:
        """Cost of all sites, or of those of one group."""
        return sum(
            costs[level]
            for costs, level, its_group in zip(self.costs, levels, self.space.groups, strict=True)
            if group in (None, its_group)
        )

    def slack(self, levels: LevelIndices, pool: str | None) -> int:
        """The cost by which sites of a pool may still grow."""
        slack = self.limit - self.cost(levels)
        return slack if pool is None else min(slack, -self.overrun(levels, pool))

    def overrun(self, levels: LevelIndices, pool: str | None) -> int:
        """The cost by which sites of a pool must shrink, when positive."""
        if pool is None:
            return self.cost(levels) - self.limit
        return self.cost(levels, pool) - self.group_limits[pool]

    def next_cheaper(self, level: int, site: int) -> int | None:
        """The next level of a site that costs less, or None."""
        costs = self.costs[site]
        while level > 0:
            level -= 1
            if costs[level] < costs[level + 1]:
                return level
        return None

    def next_dearer(self, level: int, site: int) -> int | None:
        """The next level of a site that costs more, or None."""
        costs = self.costs[site]
        while level + 1 < len(costs):
            level += 1
            if costs[level] > costs[level - 1]:
                return level
        return None

    def repair(self, levels: LevelIndices, choose: Callable[[Sequence[int]], int]) -> LevelIndices:
        """The levels shrunk until they are within all limits, then grown until nothing fits.

        `choose` picks among the indices of the sites that can move.
        """
        state = list(levels)
        for pool in self.pool_names:
            while self.overrun(tuple(state), pool) > 0:
                shrinkable = [
                    i
                    for i, level in enumerate(state)
                    if self.next_cheaper(level, i) is not None and self.pools[i] == pool
                ]
                if not shrinkable:
                    raise BudgetError(f"no plan costs at most {self.limit}")
                site = choose(shrinkable)
                cheaper = self.next_cheaper(state[site], site)
                assert cheaper is not None
                state[site] = cheaper
        while growable := self.growable(tuple(state)):
            site = choose(growable)
            dearer = self.next_dearer(state[site], site)
            assert dearer is not None
            state[site] = dearer
        return tuple(state)

    def growable(self, levels: LevelIndices) -> list[int]:
        """The indices of the sites whose next dearer level fits."""
        slacks = {pool: self.slack(levels, pool) for pool in self.pool_names}
        found = []
        for i, level in enumerate(levels):
            dearer = self.next_dearer(level, i)
            if dearer is not None:
                growth = self.costs[i][dearer] - self.costs[i][level]
                if growth <= slacks[self.pools[i]]:
                    found.append(i)
        return found

    def mutate(self, levels: LevelIndices, random: Random) -> LevelIndices:
        """One to four exchanges, few more likely: one site a level down, another as far up."""
        state = list(levels)
        for _ in range(min(random.randint(1, 4), random.randint(1, 4))):
            downs = [i for i, level in enumerate(state) if level > 0]
            if not downs:
                break
            down = random.choice(downs)
            ups = [
                i
                for i, level in enumerate(state)
                if i != down
                and level + 1 < len(self.costs[i])
                and self.pools[i] == self.pools[down]
            ]
            if not ups:
                break
            freed = self.costs[down][state[down]] - self.costs[down][state[down] - 1]
            state[down] -= 1
            up = random.choice(ups)
            reachable = self.costs[up][state[up]] + freed
            raised = state[up] + 1
            while raised + 1 < len(self.costs[up]) and self.costs[up][raised + 1] <= reachable:
                raised += 1
            state[up] = raised
        return self.repair(tuple(state), random.choice)


def mutants(
    moves: Moves[P], parent: LevelIndices, count: int, random: Random
) -> list[LevelIndices]:
    """Up to `count` distinct mutants of the parent, in the order of their making."""
    found: dict[LevelIndices, None] = {}
    for _ in range(count * 10):
        mutant = moves.mutate(parent, random)
        if mutant != parent:
            found[mutant] = None
        if len(found) == count:
            break
    return list(found)
