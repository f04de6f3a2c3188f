"""Sizes of grafts: thin, and as published."""

import pytest
import torch
from transformers import LlamaConfig

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.smash.model.body import build_embedder, build_micro
from lightstride.smash.model.config import SmashConfig, divisor, quarters
from lightstride.smash.model.modules import stop_head

LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)


def test_the_paper_preset_has_the_published_sizes() -> None:
    config = SmashConfig.paper(LLAMA_1B, adapter_for(LLAMA_1B).geometry(LLAMA_1B))
    with torch.device("meta"):
        parts = {
            "embedder": build_embedder(config),
            "micro": build_micro(config),
            "stop": stop_head(config.stop_head, config.hidden_size),
        }
    millions = {
        name: round(sum(p.numel() for p in part.parameters()) / 1e6, 1)
        for name, part in parts.items()
    }
    assert millions == {"embedder": 21.0, "micro": 243.3, "stop": 8.4}
    assert config.taps == [4, 8, 12, 16]
    assert (config.max_segment, config.embedder_heads) == (4, 64)
    assert config.modes == ("lossless", "ar", "trust")
    assert config.mode == "trust"
    assert config.micro_vocab_size is None


def test_the_default_is_thin() -> None:
    config = SmashConfig.thin(LLAMA_1B, adapter_for(LLAMA_1B).geometry(LLAMA_1B))
    assert (config.micro_layers, config.stop_head) == (1, "linear")
    assert build_embedder(config) is None
    assert config.modes == ("lossless", "ar")
    assert config.mode == "lossless"
    assert config.micro_vocab_size is not None
    assert config.micro_vocab_size < LLAMA_1B.vocab_size / 8


def test_grafts_that_only_draft_cannot_trust() -> None:
    with pytest.raises(ModelError, match="mode is 'trust'; it must be one of lossless, ar"):
        SmashConfig(mode="trust")
    assert SmashConfig(mode="trust", embedder_heads=4).mode == "trust"


def test_taps_are_at_quarters_of_any_depth() -> None:
    assert quarters(16) == [4, 8, 12, 16]
    assert quarters(30) == [8, 15, 23, 30]
    assert quarters(2) == [1, 2]
    assert quarters(1) == [1]
    assert [divisor(576, 9), divisor(576, 64), divisor(7, 4)] == [9, 64, 1]
