"""Which old entries a query may see, by what its head keeps.

Shapes: B rows, Q queries, W columns (entries, at any order of positions), T tokens of a text.
"""

import math

import torch
from torch import Tensor

from lightstride.memory.plan import Keep


def borders(keep: Keep, queries: Tensor) -> Tensor:
    """The first position that is not old for each query, of the queries' shape."""
    if keep.every == 1:
        return torch.zeros_like(queries)
    whole = (queries + 1 - keep.window).div(keep.step, rounding_mode="floor") * keep.step
    return whole.clamp(min=0)


def stays(keep: Keep, positions: Tensor, sinks: int) -> Tensor:
    """Whether an entry at each position stays when it is old, of the positions' shape."""
    if keep.every == 1:
        return torch.ones_like(positions, dtype=torch.bool)
    kept = positions < keep.first(sinks)
    return kept | (positions % keep.every == keep.every - 1) if keep.every else kept


def visible(
    keep: Keep, queries_BQ: Tensor, positions_BW: Tensor, sinks: int, sliding: int | None = None
) -> Tensor:
    """Whether each query's head still has each entry, shape (B, Q, W), causality left out.

    `sliding` is the model's own window, where the layer has one.
    """
    queries_BQ1, positions_B1W = queries_BQ[..., None], positions_BW[:, None]
    young_BQW = positions_B1W >= borders(keep, queries_BQ)[..., None]
    seen_BQW = young_BQW | stays(keep, positions_BW, sinks)[:, None]
    return seen_BQW if sliding is None else seen_BQW & (positions_B1W > queries_BQ1 - sliding)


def weighed(
    keep: Keep, queries_BQ: Tensor, positions_BW: Tensor, sinks: int, seen_BQW: Tensor
) -> Tensor:
    """What is added to logits, (B, Q, W), where old entries count as several tokens; else the mask.

    Entries that are not seen have -inf.
    """
    if keep.weight == 1:
        return seen_BQW
    positions_B1W = positions_BW[:, None]
    old_BQW = (positions_B1W < borders(keep, queries_BQ)[..., None]) & (positions_B1W >= sinks)
    added_BQW = old_BQW * math.log(keep.weight)
    return added_BQW.masked_fill(~seen_BQW, -math.inf)


def text_mask(
    keep: Keep, num_tokens: int, sinks: int, device: torch.device | str, sliding: int | None = None
) -> Tensor:
    """What each token of a text sees of them, as `weighed` says it, shape (T, T)."""
    places_1T = torch.arange(num_tokens, device=device)[None]
    causal_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    seen_1TT = visible(keep, places_1T, places_1T, sinks, sliding) & causal_TT
    return weighed(keep, places_1T, places_1T, sinks, seen_1TT)[0]
