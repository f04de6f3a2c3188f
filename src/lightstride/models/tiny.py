"""Seeded toy models, small enough to check everything in seconds, and a byte tokenizer."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


def tiny_llama(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 8,
    num_channels: int = 48,
    vocab_size: int = 260,
    tied: bool = True,
    bias: bool = False,
) -> PreTrainedModel:
    """A Llama of a few thousand random weights, in fp32 and evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()
