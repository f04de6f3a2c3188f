"""The slow twin: all keys and values, and for every head the mask that its plan implies.

It reads a whole text in one forward, so it also is the fitness of the search.

Shapes: B rows, H query heads, G KV heads, T tokens, N judged tokens, d head size.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import attend, group_slices, read_by, sliding_of
from lightstride.memory.masks import visible, weighed
from lightstride.memory.plan import ALL, Keep, MemoryPlan


class MaskedReader:
    """Attention over a text's own keys and values, masked head by head."""

    def __init__(self, plan: MemoryPlan, positions_BT: Tensor, sliding: list[int | None]) -> None:
        self.plan = plan
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

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        keeps, sliding = self.plan.blocks[layer], self.sliding[layer]
        shared = query_BHTd.shape[1] // key_BGTd.shape[1]
        output_BHTd = torch.empty_like(query_BHTd)
        for keep in dict.fromkeys(keeps):
            kv_G, query_H = group_slices([g for g, k in enumerate(keeps) if k == keep], shared)
            if keep == ALL and sliding is None:
                part = torch.nn.functional.scaled_dot_product_attention(
                    query_BHTd[:, query_H], key_BGTd[:, kv_G], value_BGTd[:, kv_G],
                    scale=scale, is_causal=True, enable_gqa=True,
                )  # fmt: skip
            else:
                mask_BTT = self.mask(keep, sliding)
                part = attend(
                    query_BHTd[:, query_H], key_BGTd[:, kv_G], value_BGTd[:, kv_G], mask_BTT, scale
                )
            output_BHTd[:, query_H] = part
        return output_BHTd


@torch.inference_mode()
def masked_hidden(model: PreTrainedModel, tokens_T: Tensor, plan: MemoryPlan) -> Tensor:
    """Last hidden states of a text read with a plan, shape (T, D)."""
    positions_1T = torch.arange(len(tokens_T), device=model.device)[None]
    reader = MaskedReader(plan, positions_1T, sliding_of(model))
    with read_by(model, reader):
        output = model.get_decoder()(
            input_ids=tokens_T[None], position_ids=positions_1T, use_cache=False
        )
    hidden_1TD = output.last_hidden_state
    assert isinstance(hidden_1TD, Tensor)
    return hidden_1TD[0]
