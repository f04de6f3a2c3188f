"""Every family's adapter on a toy of it: counts, reading, writing any width, bypassing."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, PreTrainedModel

from helpers.cuts import VARIANTS, cached_logits, cut, kept_units, logits, mask, tokens
from helpers.toys import TINY
from lightstride.errors import UnknownFamilyError
from lightstride.models.families.adapter import OUTPUT_NAME, Adapter
from lightstride.models.families.registry import ADAPTERS, adapter_for
from lightstride.models.head_logits import head_logits
from lightstride.models.shapes import KINDS, Site


@pytest.fixture(params=VARIANTS)
def model(request) -> PreTrainedModel:
    return VARIANTS[request.param]()


def test_every_family_has_a_toy_and_every_toy_an_adapter():
    assert {adapter.family for adapter in ADAPTERS} == set(TINY)
    for family, build in TINY.items():
        assert adapter_for(build().config).family == family


def test_unknown_family_names_those_there_are():
    with pytest.raises(UnknownFamilyError, match=r"'gpt2'.*gemma3_text.*qwen3"):
        adapter_for(GPT2Config())


def test_geometry_counts_what_is_there(model):
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    blocks = adapter.blocks(model)
    assert geometry.num_blocks == len(blocks)
    for site in geometry.sites:
        weights = adapter.read(blocks[site.block], site.kind)
        weights.pop("router", None)
        counted = sum(tensor.numel() for tensor in weights.values())
        assert geometry.parameters(geometry.shape(site)) == counted, site
        assert adapter.shape(blocks[site.block], site.kind) == geometry.shape(site)
        assert geometry.experts(site) == getattr(geometry.shape(site), "experts", ())


def test_sites_hold_all_of_a_block_but_norms(model):
    adapter = adapter_for(model.config)
    block = adapter.blocks(model)[0]
    read = [tensor for kind in KINDS for tensor in adapter.read(block, kind).values()]
    held = {tensor.untyped_storage().data_ptr() for tensor in read}
    left = {n: p for n, p in block.named_parameters() if p.untyped_storage().data_ptr() not in held}
    assert all("norm" in name for name in left)
    counted = sum(tensor.numel() for tensor in (*read, *left.values()))
    assert counted == sum(p.numel() for p in block.parameters())


def test_unit_costs_are_differences(model):
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    for site in geometry.sites[:2]:
        dense = geometry.shape(site)
        narrow, units = kept_units(dense)
        weights = cut(adapter.read(adapter.blocks(model)[0], site.kind), units, geometry.head_dim)
        weights.pop("router", None)
        assert geometry.parameters(narrow) == sum(t.numel() for t in weights.values())


def test_decoder_is_the_model_without_its_head(model):
    adapter = adapter_for(model.config)
    with torch.no_grad():
        hidden = adapter.decoder(model)(tokens()).last_hidden_state
        outputs = model.get_output_embeddings()(hidden)
        assert torch.equal(head_logits(model.config, outputs), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_writing_back_what_was_read_changes_nothing(model, kind):
    adapter = adapter_for(model.config)
    before = logits(model)
    for block in adapter.blocks(model):
        weights = adapter.read(block, kind)
        adapter.write(block, kind, weights, adapter.shape(block, kind))
        for name, tensor in adapter.read(block, kind).items():
            assert torch.equal(tensor, weights[name])
    assert torch.equal(logits(model), before)


def test_reading_and_writing_copy_nothing(model):
    adapter = adapter_for(model.config)
    block = adapter.blocks(model)[0]
    for kind in KINDS:
        output = adapter.output_layer(block, kind)
        weights = adapter.read(block, kind)
        assert weights[OUTPUT_NAME[kind]].data_ptr() == output.weight.data_ptr()
        adapter.write(block, kind, weights, adapter.shape(block, kind))
        assert weights[OUTPUT_NAME[kind]].data_ptr() == output.weight.data_ptr()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_site_equals_its_masked_twin(model, kind, attention):
    adapter = adapter_for(model.config)
    head_dim = adapter.geometry(model.config).head_dim
    dense = logits(model)
    block = adapter.blocks(model)[1]
    weights = adapter.read(block, kind)
    shape = adapter.shape(block, kind)
    narrow, units = kept_units(shape)
    adapter.write(block, kind, mask(weights, units, kind, head_dim), shape)
    masked = logits(model)
    adapter.write(block, kind, cut(weights, units, head_dim), narrow)
    model.set_attn_implementation(attention)
    assert adapter.shape(block, kind) == narrow
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(cached_logits(model), masked, atol=1e-5, rtol=0)
    assert (masked - dense).abs().max() > 1e-2, "the cut is no cut"
    adapter.write(block, kind, weights, shape)
    torch.testing.assert_close(logits(model), dense, atol=1e-5, rtol=0)


def site_output(model: PreTrainedModel, adapter: Adapter, site: Site) -> Tensor:
    """What the site's output layer answers in a forward of the model, shape (B, L, D)."""
    seen = []
    block = adapter.blocks(model)[site.block]
    layer = adapter.output_layer(block, site.kind)
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits(model)
    hook.remove()
    return seen[0].view(2, 24, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_bypass_answers_what_it_is_given_and_computes_nothing(model, kind):
    adapter = adapter_for(model.config)
    before = logits(model)
    output = site_output(model, adapter, Site(1, kind))
    block = adapter.blocks(model)[1]
    names = {name for name, _ in block.named_modules()}
    layer = adapter.output_layer(block, kind)
    fail = layer.register_forward_hook(lambda *_: pytest.fail("the site was computed"))
    with adapter.bypass(block, kind, output):
        assert torch.equal(logits(model), before)
    with adapter.bypass(block, kind, output + 1):
        assert not torch.equal(logits(model), before)
    fail.remove()
    assert {name for name, _ in block.named_modules()} == names
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_overrides_say_the_shape(model, kind):
    adapter = adapter_for(model.config)
    dense = adapter.geometry(model.config)
    narrow, _ = kept_units(dense.shape(Site(1, kind)))
    if not hasattr(model.config, "head_dim"):
        model.config.head_dim = dense.head_dim
    model.config.per_layer_config = {1: adapter.overrides(narrow)}
    cut_geometry = adapter.geometry(model.config)
    for site in dense.sites:
        expected = narrow if site == Site(1, kind) else dense.shape(site)
        assert cut_geometry.shape(site) == expected
    assert cut_geometry.parameters(narrow) == dense.parameters(narrow)
