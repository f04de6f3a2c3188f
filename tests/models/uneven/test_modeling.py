"""Models whose layers differ: run with every cache, copied, trained, and refused."""

import copy

import pytest
import torch
from torch import nn

from helpers.agree import assert_same_greedy
from helpers.cuts import (
    config_shapes,
    logits,
    tokens,
)
from helpers.toys import tiny_llama
from lightstride.models.rebuild import rebuilt
from lightstride.models.shapes import AttentionShape
from lightstride.models.uneven.modeling import (
    LayeredLlamaConfig,
    LayerView,
)

CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}


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


def test_heads_that_do_not_share_out_are_refused():
    with pytest.raises(Exception, match="layer 1 has 3 query heads for 2 KV heads"):
        LayeredLlamaConfig(
            num_hidden_layers=2,
            per_layer_config={1: {"num_attention_heads": 3, "num_key_value_heads": 2}},
        )


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
