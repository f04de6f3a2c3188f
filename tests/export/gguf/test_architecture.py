"""What llama.cpp cannot run right is refused, with the reason and a way out."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers.toys import TINY
from lightstride.errors import ExportError
from lightstride.export.gguf.architecture import architecture_for, describe
from lightstride.export.gguf.rope import rope_metadata
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import NO_ATTENTION, AttentionShape, FFNShape, Geometry

NARROW = AttentionShape(1, 2)


def toy(family: str, **settings) -> tuple[PreTrainedConfig, Geometry]:
    config = TINY[family](**settings).config
    return config, adapter_for(config).geometry(config)


def with_attention(geometry: Geometry, *shapes: AttentionShape) -> Geometry:
    return replace(geometry, attention=shapes)


@pytest.mark.parametrize(
    ("family", "even", "uneven"),
    [
        ("llama", "llama", "deci"),
        ("mistral", "llama", "deci"),
        ("qwen2", "qwen2", "deci"),
        ("qwen3", "qwen3", "openelm"),
    ],
)
def test_each_family_has_two_architectures(family: str, even: str, uneven: str) -> None:
    config, geometry = toy(family)
    assert architecture_for(config, geometry).name == even
    wider = replace(geometry, ffn=(geometry.ffn[0], FFNShape(16)))
    for other in (wider, with_attention(geometry, geometry.attention[0], NARROW)):
        assert architecture_for(config, other).name == uneven
        keys = describe(config, other, architecture_for(config, other)).metadata
        assert keys[f"{uneven}.attention.head_count"] == [a.num_heads for a in other.attention]
        assert keys[f"{uneven}.attention.head_count_kv"] == [
            a.num_kv_heads for a in other.attention
        ]
        assert keys[f"{uneven}.feed_forward_length"] == [f.num_channels for f in other.ffn]


def test_qwen2_with_fewer_heads_is_not_a_qwen2_of_llama_cpp() -> None:
    config, geometry = toy("qwen2")
    assert architecture_for(config, with_attention(geometry, NARROW, NARROW)).name == "deci"


@pytest.mark.parametrize("family", ["gemma3", "phi3"])
def test_families_with_one_architecture_are_refused_uneven(family: str) -> None:
    config, geometry = toy(family)
    architecture_for(config, geometry)
    narrower = replace(geometry, ffn=(FFNShape(16), *geometry.ffn[1:]))
    with pytest.raises(ExportError, match="only with the same widths"):
        architecture_for(config, narrower)


def test_phi3_keeps_its_heads() -> None:
    config, geometry = toy("phi3")
    with pytest.raises(ExportError, match="with all its heads"):
        architecture_for(config, with_attention(geometry, NARROW, NARROW))


def test_untied_uneven_qwen3_is_refused() -> None:
    config, geometry = toy("qwen3", tied=False)
    assert architecture_for(config, geometry).name == "qwen3"
    with pytest.raises(ExportError, match="tied to the embedding"):
        architecture_for(config, with_attention(geometry, geometry.attention[0], NARROW))


def test_opt_is_refused() -> None:
    with pytest.raises(ExportError, match=r"no file for llama\.cpp is written of opt"):
        architecture_for(*toy("opt"))


@pytest.mark.parametrize("block", [0, 1])
def test_a_block_without_ffn_is_refused(block: int) -> None:
    config, geometry = toy("llama")
    ffn = list(geometry.ffn)
    ffn[block] = FFNShape(0)
    with pytest.raises(ExportError, match=f"block {block} has attention and no FFN"):
        architecture_for(config, replace(geometry, ffn=tuple(ffn)))


def test_attention_may_be_missing_but_not_in_block_0() -> None:
    config, geometry = toy("llama")
    gone, dense = NO_ATTENTION, geometry.attention[0]
    assert architecture_for(config, with_attention(geometry, dense, gone)).name == "deci"
    with pytest.raises(ExportError, match="block 0 has no attention"):
        architecture_for(config, with_attention(geometry, gone, dense))
    config, geometry = toy("qwen3")
    with pytest.raises(ExportError, match="Qwen3 only with attention in every block"):
        architecture_for(config, with_attention(geometry, geometry.attention[0], gone))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "computes silu, not this model's gelu"),
        ("gemma3", {"query_pre_attn_scalar": 5}, "root of 12, this model by that of 5"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "neither capped"),
        ("qwen3", {"attention_bias": True}, "no biases"),
    ],
)
def test_other_mathematics_is_refused(family: str, settings: dict, reason: str) -> None:
    config, geometry = toy(family)
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ExportError, match=reason):
        architecture_for(config, geometry)


def test_context_ends_with_the_sliding_window() -> None:
    config, geometry = toy("mistral", sliding_window=64)
    assert describe(config, geometry, architecture_for(config, geometry)).metadata[
        "llama.context_length"
    ] == min(64, config.max_position_embeddings)


def test_gemma_windows_are_described() -> None:
    config, geometry = toy("gemma3", num_layers=6)
    keys = describe(config, geometry, architecture_for(config, geometry)).metadata
    assert keys["gemma3.attention.sliding_window"] == config.sliding_window
    assert keys["gemma3.attention.sliding_window_pattern"] == 3
    assert keys["gemma3.rope.freq_base_swa"] == 10_000
    config.layer_types = ["full_attention", *config.layer_types[1:]]
    with pytest.raises(ExportError, match="each n-th block"):
        describe(config, geometry, architecture_for(config, geometry))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_factors_are_those_of_transformers() -> None:
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=LLAMA3)
    keys, tables = rope_metadata(config, 64)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
    assert torch.allclose(plain / torch.tensor(tables["rope_freqs.weight"]), scaled, rtol=1e-5)
    assert max(tables["rope_freqs.weight"]) == 8
    assert keys == {"rope.dimension_count": 64, "rope.freq_base": 500_000.0}


def test_long_phi3_factors_travel_as_tables() -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    config = Phi3Config(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=65_536,
        original_max_position_embeddings=4096,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10_000.0, **factors},
    )
    keys, tables = rope_metadata(config, 32)
    _, attention = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    assert keys["rope.scaling.attn_factor"] == pytest.approx(attention)
    assert keys["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + 4 / 12))
    assert tables["rope_factors_long.weight"] == (4.0,) * 16
    assert tables["rope_factors_short.weight"] == (1.0,) * 16


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
            {"type": "yarn", "factor": 4.0, "original_context_length": 512},
        ),
    ],
)
def test_other_scalings_are_keys(parameters: dict, scaling: dict) -> None:
    config = LlamaConfig(rope_parameters={"rope_theta": 10_000.0, **parameters})
    keys, tables = rope_metadata(config, 128)
    assert {key.removeprefix("rope.scaling."): keys[key] for key in keys if "scaling" in key} == (
        scaling
    )
    assert not tables


@pytest.mark.parametrize(
    "parameters",
    [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}],
)
def test_unknown_scalings_are_refused(parameters: dict) -> None:
    config = LlamaConfig()
    config.rope_parameters = {"rope_theta": 10_000.0, **parameters}
    with pytest.raises(ExportError, match="cannot scale positions"):
        rope_metadata(config, 128)
