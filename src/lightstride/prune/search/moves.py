"""Steps from plan to plan that never leave the budget.

Inside a search a plan is a tuple of level numbers, one a site, in the order of `Space.sites`;
level 0 is a site's cheapest shape.  Every move ends within the limit and, unless no FFN can
grow, less than one FFN step below it.  Every loop is bounded: costs only fall, then only rise.

Paper: https://arxiv.org/abs/2503.09657, section 3.4 (sparsity shift).  We differ: a shift
exchanges true cost, between attention and FFN too unless the split is fixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from lightstride.models.shapes import KINDS, Kind
from lightstride.prune.space.plan import Plan, Space

Levels = tuple[int, ...]


@dataclass(frozen=True)
class Moves:
    """A space under a limit, with or without a fixed split between attention and FFN."""

    space: Space
    limit: int
    fixed_attention: int | None = None
    """With a fixed split: what the attention sites may cost together."""

    @cached_property
    def costs(self) -> tuple[tuple[int, ...], ...]:
        """Costs of every site's levels, rising."""
        return tuple(self.space.costs[site] for site in self.space.sites)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every site."""
        return tuple(site.kind for site in self.space.sites)

    def plan(self, levels: Levels) -> Plan:
        """The plan these level numbers mean."""
        sites = self.space.sites
        return Plan({s: self.space.shapes[s][i] for s, i in zip(sites, levels, strict=True)})

    def levels(self, plan: Plan) -> Levels:
        """The level numbers of a plan of this space."""
        return tuple(self.space.shapes[s].index(plan.shapes[s]) for s in self.space.sites)

    def cost(self, levels: Levels, kind: Kind | None = None) -> int:
        """Cost of all sites, or of those of one kind."""
        return sum(
            costs[level]
            for costs, level, its_kind in zip(self.costs, levels, self.kinds, strict=True)
            if kind in (None, its_kind)
        )

    def room(self, levels: Levels, kind: Kind) -> int:
        """What sites of this kind may still grow by."""
        room = self.limit - self.cost(levels)
        if self.fixed_attention is None or kind == "ffn":
            return room
        return min(room, self.fixed_attention - self.cost(levels, "attention"))

    def excess(self, levels: Levels, kind: Kind) -> int:
        """What sites of this kind must shrink by, when positive."""
        if self.fixed_attention is None or kind == "ffn":
            return self.cost(levels) - self.limit
        return self.cost(levels, "attention") - self.fixed_attention

    def lower(self, level: int, site: int) -> int | None:
        """The next level of a site that costs less."""
        costs = self.costs[site]
        while level > 0:
            level -= 1
            if costs[level] < costs[level + 1]:
                return level
        return None

    def raise_(self, level: int, site: int) -> int | None:
        """The next level of a site that costs more."""
        costs = self.costs[site]
        while level + 1 < len(costs):
            level += 1
            if costs[level] > costs[level - 1]:
                return level
        return None

    def fit(self, levels: Levels, choose: Callable[[Sequence[int]], int]) -> Levels:
        """The levels shrunk until they are within the limit, then grown until nothing fits.

        `choose` picks among the numbers of the sites that can move.
        """
        state = list(levels)
        for kind in KINDS:
            while self.excess(tuple(state), kind) > 0:
                shrinkable = [
                    i
                    for i, level in enumerate(state)
                    if self.lower(level, i) is not None
                    and (self.fixed_attention is None or self.kinds[i] == kind)
                ]
                site = choose(shrinkable)
                lowered = self.lower(state[site], site)
                assert lowered is not None
                state[site] = lowered
        while growable := self.growable(tuple(state)):
            site = choose(growable)
            raised = self.raise_(state[site], site)
            assert raised is not None
            state[site] = raised
        return tuple(state)

    def growable(self, levels: Levels) -> list[int]:
        """The numbers of the sites whose next dearer level fits."""
        rooms = {kind: self.room(levels, kind) for kind in KINDS}
        found = []
        for i, level in enumerate(levels):
            raised = self.raise_(level, i)
            if raised is not None:
                growth = self.costs[i][raised] - self.costs[i][level]
                if growth <= rooms[self.kinds[i]]:
                    found.append(i)
        return found

    def shift(self, levels: Levels, random: Random) -> Levels:
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
                and (self.fixed_attention is None or self.kinds[i] == self.kinds[down])
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
        return self.fit(tuple(state), random.choice)


def offspring(moves: Moves, parent: Levels, count: int, random: Random) -> list[Levels]:
    """Up to `count` distinct mutants of the parent, in the order of their making."""
    found: dict[Levels, None] = {}
    for _ in range(count * 10):
        mutant = moves.shift(parent, random)
        if mutant != parent:
            found[mutant] = None
        if len(found) == count:
            break
    return list(found)
