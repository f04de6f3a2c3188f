"""Which entries count, for all heads of a model at once.

The same as `memory/masks.py` says keep by keep: there a head's rule is a value, here the rules of
many heads are tensors, so that a step asks once and not once a block and rule.

Shapes: F heads (those of all layers, one layer after the other), B rows, Q queries, W columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightstride.memory.plan import MemoryPlan
from lightstride.memory.scores import chooses

NEVER = 2**62


@dataclass(frozen=True)
class HeadRules:
    """What each of some heads keeps."""

    window_F: Tensor
    step_F: Tensor
    every_F: Tensor
    first_F: Tensor
    """How many of the first tokens stay."""
    added_F: Tensor
    """What an old entry adds to its logit: the logarithm of the tokens that it counts as."""
    sliding_F: Tensor
    """The model's own window."""
    chooses_F: Tensor
    """Whether the head chooses by scores."""
    weighs: bool
    """Whether old entries of some head of the plan count as several tokens."""
    slides: bool
    """Whether some layer of the model has a window of its own."""

    @classmethod
    def of_plan(cls, plan: MemoryPlan, sliding: Sequence[int | None], device: torch.device) -> Self:
        """Those of all heads of a plan."""
        heads = [
            (keep, own) for keeps, own in zip(plan.blocks, sliding, strict=True) for keep in keeps
        ]
        return cls(
            torch.tensor([keep.window for keep, _ in heads], device=device),
            torch.tensor([keep.step for keep, _ in heads], device=device),
            torch.tensor([keep.every for keep, _ in heads], device=device),
            torch.tensor([keep.first(plan.sinks) for keep, _ in heads], device=device),
            torch.tensor([math.log(keep.weight) for keep, _ in heads], device=device),
            torch.tensor([NEVER if own is None else own for _, own in heads], device=device),
            torch.tensor([chooses(*head) for head in heads], device=device, dtype=torch.bool),
            weighs=any(keep.weight > 1 for keep, _ in heads),
            slides=any(own is not None for own in sliding),
        )

    def part(self, heads: slice) -> Self:
        """Those of some of the heads."""
        return replace(
            self,
            window_F=self.window_F[heads],
            step_F=self.step_F[heads],
            every_F=self.every_F[heads],
            first_F=self.first_F[heads],
            added_F=self.added_F[heads],
            sliding_F=self.sliding_F[heads],
            chooses_F=self.chooses_F[heads],
        )

    def borders(self, queries_BQ: Tensor) -> Tensor:
        """The first position that is not old for each query, (B, F, Q)."""
        step_F1 = self.step_F[:, None]
        past_BFQ = queries_BQ[:, None] + 1 - self.window_F[:, None]
        border_BFQ = past_BFQ.div(step_F1, rounding_mode="floor").clamp(min=0) * step_F1
        return border_BFQ.masked_fill(self.every_F[:, None] == 1, 0)

    def stays(self, positions_BW: Tensor, chosen_BFW: Tensor) -> Tensor:
        """Whether each entry stays when it is old, (B, F, W), given what was chosen by scores."""
        positions_B1W = positions_BW[:, None]
        every_F1 = self.every_F[:, None].clamp(min=1)
        last_BFW = (positions_B1W % every_F1 == every_F1 - 1) & (self.every_F > 0)[:, None]
        ruled_BFW = last_BFW | (positions_B1W < self.first_F[:, None])
        return torch.where(self.chooses_F[:, None], chosen_BFW, ruled_BFW)

    def seen(self, queries_BQ: Tensor, positions_BW: Tensor, chosen_BFW: Tensor) -> Tensor:
        """Whether each query's head still has each entry, (B, F, Q, W), causality left out."""
        positions_B11W = positions_BW[:, None, None]
        seen_BFQW = positions_B11W >= self.borders(queries_BQ)[..., None]
        seen_BFQW |= self.stays(positions_BW, chosen_BFW)[:, :, None]
        if self.slides:
            seen_BFQW &= positions_B11W > (queries_BQ[:, None] - self.sliding_F[:, None])[..., None]
        return seen_BFQW

    def added(
        self, queries_BQ: Tensor, positions_BW: Tensor, chosen_BFW: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """What is added to logits, (B, F, Q, W): -inf where an entry is not seen."""
        gone_BFQW = ~self.seen(queries_BQ, positions_BW, chosen_BFW)
        if not self.weighs:
            return torch.zeros_like(gone_BFQW, dtype=dtype).masked_fill_(gone_BFQW, -math.inf)
        positions_B11W = positions_BW[:, None, None]
        old_BFQW = positions_B11W < self.borders(queries_BQ)[..., None]
        old_BFQW &= positions_B11W >= self.first_F[:, None, None]
        added_BFQW = (old_BFQW * self.added_F[:, None, None]).to(dtype)
        return added_BFQW.masked_fill_(gone_BFQW, -math.inf)


class Changes:
    """Where in a text what heads see of old entries changes."""

    def __init__(self, plan: MemoryPlan, sliding: Sequence[int | None]) -> None:
        self.moving: set[tuple[int, int]] = {
            (keep.window, keep.step) for keeps in plan.blocks for keep in keeps if keep.every != 1
        }
        self.moving |= {(own, 1) for own in sliding if own is not None}

    def after(self, query: int) -> int:
        """The first later query for which something else is old than for this one."""
        nexts = [
            window + step * (max(0, (query + 1 - window) // step) + 1) - 1
            for window, step in self.moving
        ]
        return min(nexts, default=NEVER)
