"""Models whose layers differ: built, run with every cache, registered, and their config."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
)

from helpers.agree import assert_same_greedy
from helpers.cuts import (
    VARIANTS,
    cached_logits,
    config_shapes,
    cut_all,
    cut_block,
    logits,
    tokens,
)
from helpers.toys import TINY, tiny_gemma3, tiny_llama, tiny_phi3
from lightstride.models.shapes import AttentionShape, Site
from lightstride.models.uneven.modeling import (
    LayeredLlamaConfig,
    LayeredLlamaForCausalLM,
    LayerView,
)
from lightstride.models.uneven.rebuild import block_shapes, rebuilt
from lightstride.models.uneven.register import LAYERED, register

CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}


@pytest.fixture(params=VARIANTS)
def uneven(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A toy of transformers' own class, whose second block is narrower."""
    model = VARIANTS[request.param]()
    cut_block(model, 1)
    return model


def test_rebuilt_says_the_true_widths_and_computes_the_same_bits(uneven):
    model = rebuilt(uneven)
    assert type(model) is LAYERED[uneven.config.model_type][2]
    assert config_shapes(model) == block_shapes(model) == block_shapes(uneven)
    assert len(set(config_shapes(model).values())) == 4
    assert torch.equal(logits(model), logits(uneven))
    torch.testing.assert_close(cached_logits(model), logits(uneven), atol=1e-5, rtol=0)


def test_rebuilt_shares_its_tensors(uneven):
    model = rebuilt(uneven)
    owned = {parameter.data_ptr() for parameter in uneven.parameters()}
    assert {parameter.data_ptr() for parameter in model.parameters()} == owned
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.training is uneven.training


@pytest.mark.parametrize("cache", CACHES)
def test_generating_with_a_cache_is_generating_without(uneven, cache):
    model = rebuilt(uneven)
    prompt = tokens(20)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 258}
    plain = model.generate(prompt, use_cache=False, **options)
    cached = model.generate(prompt, **CACHES[cache], **options)
    for row in range(2):
        assert_same_greedy(model, [], cached[row].tolist(), plain[row].tolist())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_may_change_any_time(uneven, attention):
    model = rebuilt(uneven)
    model.set_attn_implementation(attention)
    torch.testing.assert_close(logits(model), logits(uneven), atol=1e-5, rtol=0)


def test_hidden_states_and_attentions_can_be_asked_for(uneven):
    model = rebuilt(uneven)
    model.set_attn_implementation("eager")
    answer = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(answer.hidden_states) == model.config.num_hidden_layers + 1
    heads = [
        shape.num_heads
        for shape in config_shapes(model).values()
        if isinstance(shape, AttentionShape)
    ]
    assert [weights.shape[1] for weights in answer.attentions] == heads


def test_copies_and_training_work(uneven):
    model = copy.deepcopy(rebuilt(uneven))
    assert torch.equal(logits(model), logits(uneven))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_plans_for_parallel_running_are_the_familys(uneven):
    model = rebuilt(uneven)
    assert type(model)._no_split_modules == type(uneven)._no_split_modules
    assert model._tp_plan == uneven._tp_plan
    assert isinstance(model, type(uneven))


@pytest.mark.parametrize("family", TINY)
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


def test_heads_that_do_not_share_out_are_refused():
    with pytest.raises(Exception, match="layer 1 has 3 query heads for 2 KV heads"):
        LayeredLlamaConfig(
            num_hidden_layers=2,
            per_layer_config={1: {"num_attention_heads": 3, "num_key_value_heads": 2}},
        )


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


def test_a_view_is_the_whole_config_but_for_its_own_values():
    module = nn.Module()
    module.config = tiny_llama().config
    whole = module.config
    LayerView.override_for(module, num_attention_heads=3)
    LayerView.override_for(module, num_attention_heads=1)
    assert module.config.num_attention_heads == 1
    assert module.config.hidden_size == whole.hidden_size
    whole._attn_implementation = "eager"
    assert module.config._attn_implementation == "eager"
    assert copy.deepcopy(module).config.num_attention_heads == 1
    with pytest.raises(AttributeError):
        _ = module.config.no_such_value


def test_auto_classes_know_the_layered_models():
    register()
    config = LayeredLlamaConfig(
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=260,
        per_layer_config={0: {"intermediate_size": 24}},
    )
    assert type(AutoConfig.for_model("lightstride_llama")) is LayeredLlamaConfig
    assert type(AutoModelForCausalLM.from_config(config)) is LayeredLlamaForCausalLM
    assert LayeredLlamaForCausalLM(copy.deepcopy(config)).config._attn_implementation == "sdpa"
    assert type(AutoModel.from_config(config)).__name__ == "LayeredLlamaModel"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lightstride; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
