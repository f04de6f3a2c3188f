"""The slow twin: all keys and values, and for every head the mask that its plan implies.

It reads a whole text in one forward, so it also is the fitness of the search.

Shapes: B rows, H query heads, G KV heads, T tokens, N judged tokens, d head size.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import attend, group_slices, read_by, sliding_of
from lightstride.memory.masks import borders, visible, weighed
from lightstride.memory.plan import ALL, Keep, MemoryPlan
from lightstride.memory.scores import Scores, chooses


class MaskedReader:
    """Attention over a text's own keys and values, masked head by head.

    Positions count from 0, one by one.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        positions_BT: Tensor,
        sliding: list[int | None],
        scores: Scores | None = None,
    ) -> None:
        self.plan = plan
        self.scores = scores
        self.positions_BT = positions_BT
        self.sliding = sliding
        self.masks: dict[tuple[Keep, int | None], Tensor] = {}

    def mask(self, keep: Keep, sliding: int | None) -> Tensor:
        """What each token sees, as `weighed` says it, shape (B, T, T)."""
        if (keep, sliding) not in self.masks:
            positions = self.positions_BT
            causal_BTT = positions[:, None] <= positions[..., None]
            seen_BTT = visible(keep, positions, positions, self.plan.sinks, sliding)
            seen_BTT &= causal_BTT
            self.masks[keep, sliding] = weighed(
                keep, positions, positions, self.plan.sinks, seen_BTT
            )
        return self.masks[keep, sliding]

    def chosen(self, layer: int, kv_G: Tensor, key_BGTd: Tensor, value_BGTd: Tensor) -> Tensor:
        """What each token sees where heads keep the best of a chunk, shape (B, G, T, T)."""
        assert self.scores is not None, "a plan that chooses by scores, and none are there"
        keep = self.plan.blocks[layer][int(kv_G[0])]
        stay_BGT = self.scores.stay_in_text(
            layer, kv_G, key_BGTd, value_BGTd, keep, self.plan.sinks
        )
        positions_B1T = self.positions_BT[:, None]
        young_BTT = positions_B1T >= borders(keep, self.positions_BT)[..., None]
        causal_BTT = positions_B1T <= self.positions_BT[..., None]
        return (young_BTT[:, None] | stay_BGT[:, :, None]) & causal_BTT[:, None]

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        keeps, sliding = self.plan.blocks[layer], self.sliding[layer]
        shared = query_BHTd.shape[1] // key_BGTd.shape[1]
        output_BHTd = torch.empty_like(query_BHTd)
        for keep in dict.fromkeys(keeps):
            kv_G, query_H = group_slices([g for g, k in enumerate(keeps) if k == keep], shared)
            query, key, value = query_BHTd[:, query_H], key_BGTd[:, kv_G], value_BGTd[:, kv_G]
            if keep == ALL and sliding is None:
                part = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, scale=scale, is_causal=True, enable_gqa=True
                )
            elif chooses(keep, sliding):
                part = attend(query, key, value, self.chosen(layer, kv_G, key, value), scale)
            else:
                part = attend(query, key, value, self.mask(keep, sliding), scale)
            output_BHTd[:, query_H] = part
        return output_BHTd


@torch.inference_mode()
def masked_hidden(
    model: PreTrainedModel, tokens_T: Tensor, plan: MemoryPlan, scores: Scores | None = None
) -> Tensor:
    """Last hidden states of a text read with a plan, shape (T, D)."""
    positions_1T = torch.arange(len(tokens_T), device=model.device)[None]
    reader = MaskedReader(plan, positions_1T, sliding_of(model), scores)
    with read_by(model, reader):
        output = model.get_decoder()(
            input_ids=tokens_T[None], position_ids=positions_1T, use_cache=False
        )
    hidden_1TD = output.last_hidden_state
    assert isinstance(hidden_1TD, Tensor)
    return hidden_1TD[0]
