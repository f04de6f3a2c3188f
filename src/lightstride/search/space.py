"""Sites, their admissible choices with integer costs, and plans: one choice for every site.

A *space* lists for every site its admissible *choices*, cheapest first, each with an integer
cost.  A *plan* takes one choice for every site; its *cost* is the sum.  A *limit* is the most
that a plan may cost.  Sites may belong to *groups* that have limits of their own.

Inside a search a plan is a tuple of *level indices*, one a site, in the order of the space's
sites; level 0 is a site's cheapest choice.  A search needs no more than `Space`; `SiteSpace`
gives that to whoever can say which choices there are and how a plan is made of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

LevelIndices = tuple[int, ...]
"""A plan inside a search: the index of every site's choice."""


class Plan(Protocol):
    """A plan as the fitness and the log see it."""

    @property
    def key(self) -> str:
        """One line that is equal for equal choices, and for them alone."""


P = TypeVar("P", bound=Plan)
S = TypeVar("S", bound=Hashable)
C = TypeVar("C", bound=Hashable)


class Space(Protocol[P]):
    """A space as a search sees it."""

    @property
    def level_costs(self) -> tuple[tuple[int, ...], ...]:
        """Costs of every site's levels, never falling from one level to the next."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of every site."""

    def plan(self, levels: LevelIndices) -> P:
        """The plan that these level indices mean."""

    def levels(self, plan: P) -> LevelIndices:
        """The level indices of a plan of this space."""


@dataclass(frozen=True)
class SiteSpace(ABC, Generic[S, C, P]):
    """For every site its admissible choices, cheapest first, and the cost of each."""

    choices: Mapping[S, tuple[C, ...]]
    costs: Mapping[S, tuple[int, ...]]

    @abstractmethod
    def make_plan(self, choices: Mapping[S, C]) -> P:
        """The plan of these choices, one for every site."""

    @abstractmethod
    def choices_of(self, plan: P) -> Mapping[S, C]:
        """The choice of every site in a plan."""

    def group(self, site: S) -> str:
        """The group of a site; all sites are in one unless a space says otherwise."""
        return ""

    @cached_property
    def sites(self) -> tuple[S, ...]:
        """All sites, in the order of `choices`."""
        return tuple(self.choices)

    @cached_property
    def level_costs(self) -> tuple[tuple[int, ...], ...]:
        """Costs of every site's levels, never falling."""
        return tuple(self.costs[site] for site in self.sites)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The group of every site."""
        return tuple(self.group(site) for site in self.sites)

    @cached_property
    def _cost_of(self) -> dict[tuple[S, C], int]:
        return {
            (site, choice): cost
            for site in self.sites
            for choice, cost in zip(self.choices[site], self.costs[site], strict=True)
        }

    def __contains__(self, plan: P) -> bool:
        chosen = self.choices_of(plan)
        return set(chosen) == set(self.sites) and all(
            item in self._cost_of for item in chosen.items()
        )

    def cost(self, site: S, choice: C) -> int:
        """Cost of one site at one of its choices."""
        return self._cost_of[site, choice]

    def total(self, plan: P) -> int:
        """Cost of a whole plan."""
        return sum(self._cost_of[item] for item in self.choices_of(plan).items())

    @cached_property
    def smallest(self) -> int:
        """Cost of the cheapest plan."""
        return sum(min(costs) for costs in self.costs.values())

    @cached_property
    def largest(self) -> int:
        """Cost of the dearest plan."""
        return sum(max(costs) for costs in self.costs.values())

    def plan(self, levels: LevelIndices) -> P:
        """The plan that these level indices mean."""
        pairs = zip(self.sites, levels, strict=True)
        return self.make_plan({site: self.choices[site][level] for site, level in pairs})

    def levels(self, plan: P) -> LevelIndices:
        """The level indices of a plan of this space."""
        chosen = self.choices_of(plan)
        return tuple(self.choices[site].index(chosen[site]) for site in self.sites)
