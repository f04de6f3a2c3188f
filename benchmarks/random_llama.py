"""Configurations of Llamas of real shapes, for weights that are random."""

from transformers import LlamaConfig

Sizes = tuple[int, int, int, int, int]
"""Blocks, hidden size, query heads, KV heads, FFN channels."""


def llama_config(sizes: Sizes, vocabulary: int, *, tied: bool = False) -> LlamaConfig:
    """The configuration of a Llama of these sizes."""
    blocks, hidden, heads, groups, channels = sizes
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
    )
