"""Which of a chunk's old tokens a head keeps: those with the best scores.

A score is linear in what the cache has of a token: its key as it is stored, the length of each
pair of values that the positions turn together, and its value,

    score = w_k . k + w_l . l + w_v . v,    l_i = sqrt(k_i^2 + k_{i + d/2}^2),

so it needs neither queries nor positions, and a token's never changes.  Weights are learned
(`learn_scores.py`) and lie beside the plans.  Tokens of one chunk alone are compared: as many stay
as if the last of every n stayed, and every head of a plan's rule holds as many.

Shapes: B rows, G KV heads, W = 16 tokens of a chunk, T tokens of a text, N chunks, d head size, F
numbers of an entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightstride.memory.masks import stays
from lightstride.memory.plan import CHUNK, Keep, MemoryPlan


@dataclass(frozen=True, eq=False)
class Scores:
    """Weights of all heads: of each block (G, F), none where it has no attention."""

    blocks: Sequence[Tensor]

    @classmethod
    def zeros(cls, full: MemoryPlan) -> Self:
        """Scores of 0 for all heads of a plan."""
        size = 2 * full.head_dim + full.head_dim // 2
        return cls([torch.zeros(len(block), size) for block in full.blocks])

    def of(self, layer: int, kv_G: Tensor, key_BGTd: Tensor, value_BGTd: Tensor) -> Tensor:
        """Scores of the entries of some heads of a layer, shape (B, G, T)."""
        weight_GF = self.blocks[layer].to(key_BGTd.device)[kv_G.to(key_BGTd.device)]
        numbers_BGTF = numbers_of(key_BGTd.float(), value_BGTd.float())
        return (numbers_BGTF @ weight_GF[:, :, None]).squeeze(-1)

    def stay_in_text(
        self, layer: int, kv_G: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, keep: Keep, sinks: int
    ) -> Tensor:
        """Whether each token of whole texts stays when it is old, shape (B, G, T)."""
        num_tokens = key_BGTd.shape[2]
        score_BGT = self.of(layer, kv_G, key_BGTd, value_BGTd)
        padded = torch.nn.functional.pad(score_BGT, (0, -num_tokens % CHUNK), value=-torch.inf)
        places_T = torch.arange(padded.shape[-1], device=padded.device)
        best = best_places(padded.unflatten(-1, (-1, CHUNK)), places_T.view(-1, CHUNK), keep, sinks)
        return best.flatten(-2)[..., :num_tokens]


def chooses(keep: Keep, sliding: int | None) -> bool:
    """Whether heads choose by scores; in layers with a window of the model's own the last stay."""
    return keep.choice == "best" and sliding is None


def numbers_of(key: Tensor, value: Tensor) -> Tensor:
    """What a score is linear in, (..., F), of keys and values (..., d)."""
    half = key.shape[-1] // 2
    lengths = (key[..., :half].square() + key[..., half : 2 * half].square()).sqrt()
    return torch.cat([key, lengths, value], -1)


def best_places(
    scores: Tensor, positions: Tensor, keep: Keep, sinks: int, there: Tensor | bool = True
) -> Tensor:
    """Whether each token of whole chunks stays when it is old, (..., W): the first tokens, and
    those with the best scores, in all as many as `stays` has.

    `there` says which places have an entry, where tokens were merged: of no other anything stays.
    """
    first = (positions < sinks) & there
    count = (stays(keep, positions, sinks) & there & ~first).sum(-1, keepdim=True)
    chosen = ~first & there
    order = scores.masked_fill(~chosen, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return first | (order.argsort(-1) < count)


def moves(
    best: Tensor, positions: Tensor, keep: Keep, sinks: int, there: Tensor | bool = True
) -> Tensor:
    """For each place of chunks the place whose entry is to stand there, (..., W).

    What stays then stands, in its order, where the last of every n would.
    """
    held = (stays(keep, positions, sinks) & there).expand_as(best)
    chosen_first = (~best).to(torch.int8).argsort(dim=-1, stable=True)
    rank = (held.cumsum(-1) - 1).clamp(min=0)
    itself = torch.arange(best.shape[-1], device=best.device)
    return torch.where(held, chosen_first.gather(-1, rank), itself)
