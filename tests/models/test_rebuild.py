"""From the widths of a model's blocks to the class and config that say so."""

import pytest
import torch
from transformers import (
    MistralForCausalLM,
)

from helpers.cuts import (
    cached_logits,
    config_shapes,
    cut_all,
    cut_block,
    logits,
)
from helpers.toys import TINY, WITH_EXPERTS, tiny_gemma3, tiny_llama, tiny_phi3
from lightstride.models.rebuild import block_shapes, rebuilt
from lightstride.models.shapes import AttentionShape, Site
from lightstride.models.uneven.register import LAYERED


def test_rebuilt_says_the_true_widths_and_computes_the_same_bits(uneven):
    model = rebuilt(uneven)
    assert type(model) is LAYERED[uneven.config.model_type.removeprefix("lightstride_")][2]
    assert config_shapes(model) == block_shapes(model) == block_shapes(uneven)
    assert len(set(config_shapes(model).values())) >= 4
    assert torch.equal(logits(model), logits(uneven))
    torch.testing.assert_close(cached_logits(model), logits(uneven), atol=1e-5, rtol=0)


def test_rebuilt_shares_its_tensors(uneven):
    model = rebuilt(uneven)
    owned = {parameter.data_ptr() for parameter in uneven.parameters()}
    assert {parameter.data_ptr() for parameter in model.parameters()} == owned
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.training is uneven.training


def test_plans_for_parallel_running_are_the_familys(uneven):
    model = rebuilt(uneven)
    assert type(model)._no_split_modules == type(uneven)._no_split_modules
    assert model._tp_plan == uneven._tp_plan
    assert isinstance(model, type(uneven))


@pytest.mark.parametrize("family", sorted(set(TINY) - set(WITH_EXPERTS)))
def test_even_widths_are_the_familys_own_class(family):
    model = TINY[family]()
    cut_all(model, ("ffn",))
    even = rebuilt(model)
    assert type(even) is type(model)
    assert "per_layer_config" not in even.config.to_dict()
    assert torch.equal(logits(even), logits(model))


def test_llama_heads_that_do_not_divide_the_hidden_size_are_mistrals():
    model = tiny_llama(num_kv_heads=4, queries_per_group=1)
    cut_all(model)
    even = rebuilt(model)
    assert type(even) is MistralForCausalLM
    assert even.config.sliding_window is None
    assert config_shapes(even)[Site(0, "attention")] == AttentionShape(3, 1)
    assert torch.equal(logits(even), logits(model))


@pytest.mark.parametrize(
    "model",
    [
        tiny_llama(num_kv_heads=4, queries_per_group=1, bias=True),
        tiny_gemma3(num_kv_heads=4, queries_per_group=1),
        TINY["opt"](),
    ],
    ids=["llama-bias", "gemma3", "opt"],
)
def test_even_widths_that_no_class_can_say_are_layered(model):
    cut_all(model)
    even = rebuilt(model)
    assert type(even) is LAYERED[model.config.model_type][2]
    assert config_shapes(even) == block_shapes(model)
    assert torch.equal(logits(even), logits(model))


def test_rebuilding_again_changes_nothing(uneven):
    once = rebuilt(uneven)
    twice = rebuilt(once)
    assert type(twice) is type(once)
    assert twice.config.to_dict() == once.config.to_dict()


def test_stretched_positions_survive_uneven_heads():
    """Rotary code that reads the number of heads must not meet the uneven config."""
    half = tiny_phi3().config.hidden_size // 4 // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.5] * half,
        "long_factor": [3.0] * half,
        "original_max_position_embeddings": 16,
    }
    model = tiny_phi3()
    model.config.rope_parameters = rope
    model.config.original_max_position_embeddings = 16
    model = type(model)(model.config).eval()
    cut_block(model, 0)
    layered = rebuilt(model)
    assert torch.equal(logits(layered), logits(model))
