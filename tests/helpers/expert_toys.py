"""Seeded toys whose FFNs have several experts: as they are published, and as they are opened."""

from typing import Any

from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from helpers.toy_base import BOS, EOS, PAD, VOCAB_SIZE, build
from lightstride.models.rebuild import rebuilt


def published_qwen3_moe(
    *,
    seed: int = 0,
    num_layers: int = 3,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 12,
    num_channels: int = 24,
    num_experts: int = 4,
    experts_per_token: int = 2,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
    plain_layers: tuple[int, ...] = (0,),
    normalizes: bool = True,
) -> Qwen3MoeForCausalLM:
    """A Qwen3 with experts in all layers but the plain ones, of transformers' own class."""
    config = Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * num_channels,
        moe_intermediate_size=num_channels,
        num_experts=num_experts,
        num_experts_per_tok=experts_per_token,
        norm_topk_prob=normalizes,
        mlp_only_layers=list(plain_layers),
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Qwen3MoeForCausalLM, config, seed)


def tiny_qwen3_moe(**sizes: Any) -> PreTrainedModel:
    """The same as it is opened: its experts can be cut."""
    return rebuilt(published_qwen3_moe(**sizes))
