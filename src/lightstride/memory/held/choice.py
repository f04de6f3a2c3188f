"""What heads of several layers choose by scores, at once.

Shapes: F heads of all layers, G of them, N chunks, W = 16 places of a chunk, d head size, S numbers
of an entry.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.memory.layout import Chunks
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.scores import Scores, best_places, chooses, numbers_of


class Chooser:
    """The heads of a plan that choose, and their scores."""

    def __init__(
        self,
        plan: MemoryPlan,
        scores: Scores | None,
        sliding: Sequence[int | None],
        device: torch.device,
    ) -> None:
        self.sinks = plan.sinks
        self.keeps: list[Keep | None] = [
            keep if chooses(keep, own) else None
            for keeps, own in zip(plan.blocks, sliding, strict=True)
            for keep in keeps
        ]
        """What each head keeps, None where it does not choose."""
        windows = [keep.window for keep in self.keeps if keep is not None]
        self.first = Keep(0, min(windows)) if windows else None
        """Of the borders of heads that choose none is further than this one's."""
        self.weight_FS1 = torch.zeros(0)
        if windows:
            assert scores is not None, "a plan that chooses by scores, and none are there"
            self.weight_FS1 = torch.cat([w.to(device) for w in scores.blocks])[..., None]

    def border(self, query: int) -> int:
        """Up to where some head must have chosen, for a query."""
        return 0 if self.first is None else self.first.border(query)

    def chooses(self, heads: slice) -> bool:
        """Whether some of these heads do."""
        return any(self.keeps[heads])

    def best(self, heads: slice, key_NGWd: Tensor, value_NGWd: Tensor, chunks: Chunks) -> Tensor:
        """Whether each entry of chunks stays in some of the heads, (N, G, W); where a place stands
        for another, whether that does."""
        numbers_NGWS = numbers_of(key_NGWd.float(), value_NGWd.float())
        score_NGW = (numbers_NGWS @ self.weight_FS1[heads]).squeeze(-1)
        best_NGW = torch.zeros_like(score_NGW, dtype=torch.bool)
        alike: dict[int, list[int]] = {}
        for head, keep in enumerate(self.keeps[heads]):
            if keep is not None:
                alike.setdefault(keep.every, []).append(head)
        for index in alike.values():
            keep = self.keeps[heads][index[0]]
            assert keep is not None
            places = chunks.positions_NW[:, None], keep, self.sinks, chunks.there_NW[:, None]
            best_NGW[:, index] = best_places(score_NGW[:, index], *places)
        return best_NGW.gather(-1, chunks.stands_for_NW[:, None].expand_as(best_NGW))
