"""What engines run narrows the space."""

from dataclasses import replace

import pytest

from helpers.plans import SMOLLM2, space_of
from lightstride.errors import BudgetError, ConfigError
from lightstride.models.shapes import (
    AttentionShape,
    FFNShape,
    Site,
)
from lightstride.prune.space.targets import TARGETS, Target, for_model, named_target


def test_targets_narrow_the_space() -> None:
    packed = space_of(SMOLLM2, named_target("gguf", channel_multiple=256))
    assert [s.num_channels for s in packed.choices[Site(0, "ffn")]] == [
        256 * i for i in range(1, 7)
    ]  # type: ignore[union-attr]
    decilm = space_of(SMOLLM2, TARGETS["decilm"])
    assert decilm.choices[Site(0, "attention")] == (AttentionShape(3, 3),)
    listed = Target(name="x", head_shapes=(AttentionShape(2, 2),))
    assert listed.shapes(AttentionShape(3, 3)) == (AttentionShape(2, 2), AttentionShape(3, 3))
    split = Target(name="x", tensor_parallel=2)
    assert all(s.num_kv_heads % 2 == 0 for s in split.shapes(AttentionShape(8, 4)))  # type: ignore[union-attr]
    assert split.shapes(FFNShape(100)) == tuple(map(FFNShape, (32, 64, 96, 100)))


def test_a_target_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(BudgetError, match="allows no shape"):
        space_of(SMOLLM2, named_target("any", tensor_parallel=5))


def test_bad_targets() -> None:
    with pytest.raises(ConfigError, match="no target is called 'onnx'"):
        named_target("onnx")
    with pytest.raises(ConfigError, match="multiples of 256"):
        named_target("decilm", channel_multiple=64)
    with pytest.raises(ConfigError, match="not >= 1"):
        Target(name="x", channel_multiple=0)


@pytest.mark.parametrize("name", ["any", "gguf"])
def test_llama_cpp_narrows_some_families(name: str) -> None:
    target = TARGETS[name]
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        assert for_model(target, replace(SMOLLM2, family=family)) == target
    assert for_model(target, replace(SMOLLM2, family="gemma3")).uniform
    assert not for_model(target, replace(SMOLLM2, family="gemma3")).heads_fixed
    assert for_model(target, replace(SMOLLM2, family="qwen3", tied_head=False)).uniform
    phi3 = for_model(target, replace(SMOLLM2, family="phi3"))
    assert phi3.uniform
    assert phi3.heads_fixed
    for other in ("hf", "vllm", "uniform"):
        assert for_model(TARGETS[other], replace(SMOLLM2, family="phi3")) == TARGETS[other]


def test_engines_without_the_family_are_refused() -> None:
    opt = replace(SMOLLM2, family="opt")
    assert for_model(TARGETS["any"], opt) == TARGETS["any"]
    with pytest.raises(ConfigError, match=r"no file for llama\.cpp is written of opt"):
        for_model(TARGETS["gguf"], opt)
    with pytest.raises(ConfigError, match="decilm runs llama, mistral, qwen2, not opt"):
        for_model(TARGETS["decilm"], opt)
