"""Memory plans as a space of the search: a site is a KV head, its choices are what it keeps.

Costs are entries at one context length, exact, the window and the first tokens among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
Head = tuple[int, int]
"""A KV head: its block and its place there."""


def keeps_for(context: int) -> tuple[Keep, ...]:
    """What a head may keep, cheapest first; ConfigError is for the caller to raise."""
    windows = [window for window in WINDOWS if window < context]
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
class MemorySpace(SiteSpace[Head, Keep, PlanKey]):
    """All plans of a model."""

    full: MemoryPlan

    @classmethod
    def of(cls, full: MemoryPlan, context: int) -> "MemorySpace":
        """The space of the plans of a model, given its full one."""
        keeps = keeps_for(context)
        costs = tuple(keep.entries(context, SINKS) for keep in keeps)
        heads = [(b, g) for b, block in enumerate(full.blocks) for g in range(len(block))]
        return cls(dict.fromkeys(heads, keeps), dict.fromkeys(heads, costs), full)

    def make_plan(self, choices: Mapping[Head, Keep]) -> PlanKey:
        """The plan of these choices, one for every head."""
        blocks = tuple(
            tuple(choices[block, head] for head in range(len(keeps)))
            for block, keeps in enumerate(self.full.blocks)
        )
        plan = MemoryPlan(
            blocks=blocks, head_dim=self.full.head_dim, sinks=SINKS, base=self.full.base
        )
        return PlanKey(plan)

    def choices_of(self, plan: PlanKey) -> Mapping[Head, Keep]:
        """The choice of every head in a plan."""
        return {
            (block, head): keep
            for block, keeps in enumerate(plan.plan.blocks)
            for head, keep in enumerate(keeps)
        }


def limit_of(full: MemoryPlan, budget: float, context: int) -> int:
    """Entries that a budget allows at a context; BudgetError where no plan has so few."""
    limit = int(budget * full.num_heads * context)
    least = full.num_heads * keeps_for(context)[0].entries(context, SINKS)
    if limit < least:
        raise BudgetError(
            f"--kv {budget:g} is below the first tokens and the window: of a context of {context} "
            f"tokens a plan holds at least {least / (full.num_heads * context):.3f} a token"
        )
    return limit
