"""Memory plans as a space of the search: a site is a KV head, its choices are what it keeps.

By block a site is all KV heads of a block, which keep all or a window that slides.  Engines know
one size of such windows in a model, so each size is a space of its own.

Costs are entries at one context length, exact, the window and the first tokens among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightstride.errors import BudgetError
from lightstride.memory.plan import ALL, SINKS, Keep, MemoryPlan
from lightstride.search.space import SiteSpace

WINDOWS = (64, 128, 256, 512)
EVERY_OLD = (2, 4, 8, 16)
"""Of how many old tokens the best one stays, where any does.

The last of every n, which rules of older plans keep, loses two to four times as much (LOG.md).
"""
CONTEXT = 1000
"""Tokens of a text at which a plan's budget is counted; longer ones cost less a token."""
By = Literal["head", "block"]
"""Whether each KV head of a block keeps what it likes, or all the same."""
Heads = tuple[int, tuple[int, ...]]
"""KV heads that keep the same: their block and their places there."""


def keeps_for(context: int, by: By = "head") -> tuple[Keep, ...]:
    """What a head may keep, cheapest first; ConfigError is for the caller to raise."""
    windows = [window for window in WINDOWS if window < context]
    if by == "block":
        return (*(Keep(0, window, choice="slide") for window in windows), ALL)
    found = [ALL, *(Keep(0, window) for window in windows)]
    found += [Keep(every, window, choice="best") for window in windows for every in EVERY_OLD]
    return tuple(sorted(found, key=lambda keep: (keep.entries(context, SINKS), -keep.window)))


@dataclass(frozen=True)
class PlanKey:
    """A plan with the one line that tells it from others."""

    plan: MemoryPlan

    @property
    def key(self) -> str:
        """What every head keeps, block by block."""
        return " | ".join(" ".join(map(str, block)) for block in self.plan.blocks)


@dataclass(frozen=True)
class MemorySpace(SiteSpace[Heads, Keep, PlanKey]):
    """Plans of a model, all by head or all by block."""

    full: MemoryPlan

    @classmethod
    def of(cls, full: MemoryPlan, context: int, keeps: Sequence[Keep], by: By) -> "MemorySpace":
        """The space of the plans of a model, given its full one and what heads may keep."""
        sites: list[Heads] = []
        for block, now in enumerate(full.blocks):
            places = tuple(range(len(now)))
            sites += [(block, (head,)) for head in places] if by == "head" else [(block, places)]
        choices = {site: tuple(keeps) for site in sites if site[1]}
        costs = {
            (block, heads): tuple(len(heads) * keep.entries(context, SINKS) for keep in keeps)
            for block, heads in choices
        }
        return cls(choices, costs, full)

    def make_plan(self, choices: Mapping[Heads, Keep]) -> PlanKey:
        """The plan of these choices, one for every site."""
        blocks = [list(block) for block in self.full.blocks]
        for (block, heads), keep in choices.items():
            for head in heads:
                blocks[block][head] = keep
        plan = MemoryPlan(
            blocks=tuple(map(tuple, blocks)),
            head_dim=self.full.head_dim,
            sinks=SINKS,
            base=self.full.base,
        )
        return PlanKey(plan)

    def choices_of(self, plan: PlanKey) -> Mapping[Heads, Keep]:
        """The choice of every site in a plan."""
        return {(block, heads): plan.plan.blocks[block][heads[0]] for block, heads in self.choices}


def spaces_of(full: MemoryPlan, context: int, by: By) -> list[MemorySpace]:
    """The spaces of a model's plans: by block one for each size of a window."""
    keeps = keeps_for(context, by)
    if by == "head":
        return [MemorySpace.of(full, context, keeps, by)]
    return [MemorySpace.of(full, context, (keep, ALL), by) for keep in keeps if keep != ALL]


def limit_of(full: MemoryPlan, budget: float, context: int, by: By = "head") -> int:
    """Entries that a budget allows at a context; BudgetError where no plan has so few."""
    limit = int(budget * full.num_heads * context)
    least = full.num_heads * keeps_for(context, by)[0].entries(context, SINKS)
    if limit < least:
        raise BudgetError(
            f"--kv {budget:g} is below the smallest window: of a context of {context} "
            f"tokens a plan holds at least {least / (full.num_heads * context):.3f} a token"
        )
    return limit
