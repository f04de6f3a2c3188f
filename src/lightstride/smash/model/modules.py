"""The grafts of a smashed model: they draft a step's further tokens, know when to stop, may merge.

Paper: HAMburger (arXiv 2505.20438), section 3 and its published code.  The micro-step decoder is a
causal decoder over [F_1..F_T, e_1, .., e_{n-1}], F the base model's hidden states at T depths of
the last slot, e_i (D,) the embeddings of the step's n tokens; its output at e_i, after a norm of
its own, predicts token i + 1 by the base's head.  Token 1 is the base's own next token.  The stop
head reads the vector that predicted a token and answers the logit of "stop after this token".

Where tokens are merged (`SmashConfig.paper`), the compositional embedder answers for a segment

    n = 1:  e_1        n > 1:  m + W_o a + b_o,   m = mean_i e_i,
    a = attention(query W_q m, keys W_k [e_i; p_i], values W_v [e_i; p_i]),   p_i learned (D/2,).

We differ: one batched merge with a mask, any sizes, W_o starts at zero (a merged vector starts as
the mean), the micro decoder has a final norm unless told otherwise, and its layers are our own
small Llama layer for every family, not the family's: it needs no masks, caches or config of
transformers, costs little per call, and takes the weights of the base's last block by the adapter's
canonical names.

Shapes: N segments, K their tokens, D hidden size, T taps, S slots, R of them with an output,
H query heads, G KV heads, d head size, C FFN channels.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

MicroCache = list[tuple[Tensor, Tensor]]
"""Keys and values of each micro layer, shape (N, G, S, d)."""


class Embedder(nn.Module):
    """Merges the embeddings of a segment into one."""

    def __init__(self, *, hidden_size: int, num_heads: int, max_segment: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positions = nn.Parameter(torch.empty(max_segment, hidden_size // 2))
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size + hidden_size // 2, hidden_size)
        self.value = nn.Linear(hidden_size + hidden_size // 2, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        nn.init.xavier_normal_(self.positions)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, embeddings_NKD: Tensor, lengths_N: Tensor) -> Tensor:
        """One vector a segment, shape (N, D); what is behind a segment's length is ignored."""
        num_segments, num_tokens, hidden_size = embeddings_NKD.shape
        within_NK = torch.arange(num_tokens, device=lengths_N.device) < lengths_N[:, None]
        kept_NKD = embeddings_NKD.masked_fill(~within_NK[..., None], 0)
        mean_ND = kept_NKD.sum(1) / lengths_N.clamp(min=1)[:, None].to(kept_NKD.dtype)
        positions_NKE = self.positions[:num_tokens].expand(num_segments, -1, -1)
        placed = torch.cat([kept_NKD, positions_NKE], dim=-1)
        attended = nn.functional.scaled_dot_product_attention(
            self.query(mean_ND).view(num_segments, self.num_heads, 1, -1),
            self.key(placed).view(num_segments, num_tokens, self.num_heads, -1).transpose(1, 2),
            self.value(placed).view(num_segments, num_tokens, self.num_heads, -1).transpose(1, 2),
            attn_mask=(within_NK | (lengths_N == 0)[:, None])[:, None, None],
        )
        merged_ND = mean_ND + self.output(attended.reshape(num_segments, hidden_size))
        return torch.where((lengths_N > 1)[:, None], merged_ND, embeddings_NKD[:, 0])


class MicroAttention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.output = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self,
        inputs_NSD: Tensor,
        angles_2Sd: Tensor,
        past: tuple[Tensor, Tensor] | None,
        num_outputs: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The outputs of the last slots, shape (N, R, D), and keys and values of all slots."""
        heads = (-1, self.head_dim)
        asking_NRD = inputs_NSD[:, -num_outputs:]
        query = rotate(
            self.query(asking_NRD).unflatten(-1, heads).transpose(1, 2),
            angles_2Sd[:, -num_outputs:],
        )
        key = rotate(self.key(inputs_NSD).unflatten(-1, heads).transpose(1, 2), angles_2Sd)
        value = self.value(inputs_NSD).unflatten(-1, heads).transpose(1, 2)
        assert past is None or inputs_NSD.shape[1] == 1
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        num_slots = key.shape[2]
        sees_RS = None
        if num_outputs > 1:
            ones_SS = torch.ones(num_slots, num_slots, dtype=torch.bool, device=key.device)
            sees_RS = ones_SS.tril()[-num_outputs:]
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sees_RS, enable_gqa=query.shape[1] != key.shape[1]
        )
        return self.output(attended.transpose(1, 2).flatten(2)), (key, value)


class MicroLayer(nn.Module):
    """A pre-norm block: attention, then a gated FFN."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_channels: int,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=epsilon)
        self.attention = MicroAttention(
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )
        self.ffn_norm = nn.RMSNorm(hidden_size, eps=epsilon)
        self.gate = nn.Linear(hidden_size, num_channels, bias=False)
        self.up = nn.Linear(hidden_size, num_channels, bias=False)
        self.down = nn.Linear(num_channels, hidden_size, bias=False)

    def forward(
        self,
        hidden_NSD: Tensor,
        angles_2Sd: Tensor,
        past: tuple[Tensor, Tensor] | None,
        num_outputs: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The block's last outputs, shape (N, R, D), and keys and values of all its slots."""
        attended_NRD, present = self.attention(
            self.attention_norm(hidden_NSD), angles_2Sd, past, num_outputs
        )
        hidden_NRD = hidden_NSD[:, -num_outputs:] + attended_NRD
        inputs_NRD = self.ffn_norm(hidden_NRD)
        return hidden_NRD + self.down(
            nn.functional.silu(self.gate(inputs_NRD)) * self.up(inputs_NRD)
        ), present


class MicroDecoder(nn.Module):
    """A few causal layers over taps and emitted tokens."""

    angles_2Sd: Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_channels: int,
        num_slots: int,
        rope: Mapping[str, object],
        epsilon: float,
        has_norm: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MicroLayer(
                hidden_size=hidden_size,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                num_channels=num_channels,
                epsilon=epsilon,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=epsilon) if has_norm else nn.Identity()
        angles = rotary_angles(num_slots, head_dim, rope)
        self.register_buffer("angles_2Sd", angles, persistent=False)

    def forward(
        self, inputs_NSD: Tensor, past: MicroCache | None, num_outputs: int | None = None
    ) -> tuple[Tensor, MicroCache]:
        """Normed outputs of the last slots, shape (N, R, D), and the cache.

        With `past`, S is 1 and continues it.  `num_outputs` is R, all slots if not given: the last
        layer computes no more of the others than their keys and values.
        """
        start = 0 if past is None else past[0][0].shape[2]
        angles_2Sd = self.angles_2Sd[:, start : start + inputs_NSD.shape[1]].to(inputs_NSD.dtype)
        hidden_NSD, presents = inputs_NSD, []
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            wanted = num_outputs if is_last and num_outputs else hidden_NSD.shape[1]
            hidden_NSD, present = layer(
                hidden_NSD, angles_2Sd, None if past is None else past[index], wanted
            )
            presents.append(present)
        return self.norm(hidden_NSD), presents


def stop_head(kind: Literal["linear", "mlp"], hidden_size: int) -> nn.Module:
    """A module from (..., D) to the logit of "stop after this token", (..., 1)."""
    if kind == "linear":
        return nn.Linear(hidden_size, 1)
    return nn.Sequential(
        nn.Linear(hidden_size, hidden_size),
        nn.SiLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.SiLU(),
        nn.Linear(hidden_size, 1),
    )


def rotary_angles(num_slots: int, head_dim: int, rope: Mapping[str, object]) -> Tensor:
    """Cosines and sines of every slot, shape (2, S, d), by Llama's rotary embedding."""
    config = LlamaConfig(head_dim=head_dim, rope_parameters=dict(rope))
    slots_1S = torch.arange(num_slots, device="cpu")[None]
    with torch.device("cpu"):
        cosine_1Sd, sine_1Sd = LlamaRotaryEmbedding(config)(torch.zeros(()), slots_1S)
    return torch.cat([cosine_1Sd, sine_1Sd])


def rotate(states_NHSd: Tensor, angles_2Sd: Tensor) -> Tensor:
    """States turned by their slot's angles, halves of d paired as Llama pairs them."""
    first, second = states_NHSd.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states_NHSd * angles_2Sd[0] + turned * angles_2Sd[1]
