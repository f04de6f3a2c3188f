"""A cut model is its masked twin without the zeros; installing is undone by installing None."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.agree import assert_close_logits, assert_same_greedy, assert_same_weights
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import ADAPTERS, adapter_for
from lightstride.models.opening.load import load_model
from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNKept,
    Kept,
    Shape,
    Site,
    keep_all,
)
from lightstride.prune.cut.materialize import (
    DenseSites,
    cut_weights,
    install,
    mask,
    materialize,
)
from lightstride.prune.cut.refit import CutSite, kept_inputs

FAMILIES = [adapter.family for adapter in ADAPTERS]


def random_kept(shape: Shape, generator: random.Random) -> Kept:
    """Random units of a dense site, at a random width."""
    if isinstance(shape, AttentionShape):
        groups = sorted(
            generator.sample(range(shape.num_kv_heads), generator.randint(1, shape.num_kv_heads))
        )
        width = generator.randint(1, shape.queries_per_group)
        heads = [generator.sample(range(shape.queries_per_group), width) for _ in groups]
        return AttentionKept(tuple(groups), tuple(tuple(sorted(queries)) for queries in heads))
    if shape.experts:
        size, staying = shape.experts[0], generator.sample(range(len(shape.experts)), 3)
        widths = {expert: generator.randint(1, size) for expert in sorted(staying)}
        return FFNKept(
            tuple(
                expert * size + channel
                for expert, width in widths.items()
                for channel in sorted(generator.sample(range(size), width))
            ),
            size,
        )
    width = generator.randint(1, shape.num_channels)
    return FFNKept(tuple(sorted(generator.sample(range(shape.num_channels), width))))


def random_levels(model: PreTrainedModel, seed: int, *, bias: bool = False) -> dict[Site, CutSite]:
    """Every site cut to random units, with random output weights."""
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    generator = random.Random(seed)
    torch.manual_seed(seed)
    levels = {}
    for site in geometry.sites:
        kept = random_kept(geometry.shape(site), generator)
        columns = kept_inputs(kept, geometry.shape(site), geometry.head_dim)
        weight = torch.randn(geometry.hidden_size, len(columns)) / len(columns) ** 0.5
        levels[site] = CutSite(kept, weight, 0.0, torch.randn(len(weight)) if bias else None)
    return levels


def logits(model: PreTrainedModel) -> Tensor:
    tokens = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_twin_is_the_cut_model(family: str, seed: int) -> None:
    model = TINY[family]()
    before = logits(model)
    adapter = adapter_for(model.config)
    levels = random_levels(model, seed)
    smaller, twin = materialize(model, adapter, levels), mask(model, adapter, levels)
    assert (logits(smaller) - logits(twin)).abs().max() < 5e-5
    assert (logits(twin) - before).abs().max() > 1e-2
    assert torch.equal(logits(model), before)
    geometry = adapter.geometry(smaller.config)
    assert [geometry.shape(site) for site in geometry.sites] == [
        levels[site].kept.shape for site in geometry.sites
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_units_and_dense_weights_are_the_dense_model(family: str) -> None:
    model = TINY[family]()
    adapter = adapter_for(model.config)
    dense = DenseSites.of(model, adapter)
    levels = {
        site: CutSite(keep_all(dense.geometry.shape(site)), weights[OUTPUT_NAME[site.kind]], 0.0)
        for site, weights in dense.weights.items()
    }
    assert torch.equal(logits(materialize(model, adapter, levels)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_model_generates_with_a_cache(family: str) -> None:
    model = TINY[family]()
    smaller = materialize(model, adapter_for(model.config), random_levels(model, 5))
    prompt = torch.tensor([[65, 66, 67]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 258}
    with_cache, without = (
        smaller.generate(prompt, use_cache=use_cache, **options)[0].tolist()
        for use_cache in (True, False)
    )
    assert_same_greedy(smaller, [], with_cache, without)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_cut_model_is_read_back(family: str, tmp_path: Path) -> None:
    model = TINY[family]()
    smaller = materialize(model, adapter_for(model.config), random_levels(model, 6))
    save_checkpoint(smaller, byte_tokenizer(), tmp_path / "cut")
    loaded = load_model(str(tmp_path / "cut"))
    assert_same_weights(loaded, smaller)
    assert_close_logits(logits(loaded), logits(smaller))
    assert loaded.num_parameters() == smaller.num_parameters() < model.num_parameters()


def test_new_biases_are_installed() -> None:
    for dense_bias in (False, True):
        model = tiny_llama(bias=dense_bias)
        adapter = adapter_for(model.config)
        levels = random_levels(model, 4, bias=True)
        smaller = materialize(model, adapter, levels)
        twin = mask(model, adapter, levels)
        assert (logits(smaller) - logits(twin)).abs().max() < 1e-5
        weights = adapter.read(adapter.blocks(smaller)[1], "ffn")
        assert torch.equal(weights["down_bias"], levels[Site(1, "ffn")].bias_O)


def test_install_cuts_in_place_and_none_puts_back() -> None:
    model = tiny_llama(num_layers=3)
    adapter = adapter_for(model.config)
    before = logits(model)
    dense = DenseSites.of(model, adapter)
    first, second = random_levels(model, 1), random_levels(model, 2)
    expected = logits(materialize(model, adapter, second))
    install(model, adapter, dense, first)
    install(model, adapter, dense, second)
    assert torch.equal(logits(model), expected)
    install(model, adapter, dense, dict.fromkeys(second))
    assert torch.equal(logits(model), before)
    for site, weights in dense.weights.items():
        now = adapter.read(adapter.blocks(model)[site.block], site.kind)
        assert all(now[name].data_ptr() == weights[name].data_ptr() for name in weights)


def test_what_is_not_cut_is_shared() -> None:
    model = tiny_llama()
    adapter = adapter_for(model.config)
    levels = random_levels(model, 0)
    del levels[Site(0, "attention")]
    smaller = materialize(model, adapter, levels)
    shared = {value.data_ptr() for value in model.state_dict().values()}
    state = smaller.state_dict()
    assert state["model.embed_tokens.weight"].data_ptr() in shared
    assert state["model.layers.0.self_attn.q_proj.weight"].data_ptr() in shared
    assert state["model.layers.0.mlp.down_proj.weight"].data_ptr() not in shared
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert smaller.config is not model.config


def test_cut_weights_are_rows_of_the_dense_ones() -> None:
    dense = AttentionShape(2, 3)
    kept = AttentionKept((1,), ((0, 2),))
    weights = {
        name: torch.randn(rows, 4) for name, rows in [("query", 12), ("key", 4), ("value", 4)]
    }
    weights["output"] = torch.randn(4, 12)
    weights["query_bias"] = torch.arange(12.0)
    output = torch.randn(4, 4)
    cut = cut_weights(weights, CutSite(kept, output, 0.0), dense, head_dim=2)
    assert torch.equal(cut["query"], weights["query"][[6, 7, 10, 11]])
    assert torch.equal(cut["query_bias"], torch.tensor([6.0, 7, 10, 11]))
    assert torch.equal(cut["key"], weights["key"][2:])
    assert torch.equal(cut["value"], weights["value"][2:])
    assert torch.equal(cut["output"], output)
    assert "output_bias" not in cut
