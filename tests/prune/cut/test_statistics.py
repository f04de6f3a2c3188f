"""The stream sees what the model computes, whatever the batches, the store and the cuts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.levels import one_level, own_blocks
from helpers.toys import CHANGED_ANSWERS, TINY, tiny_llama
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import ADAPTERS, adapter_for
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Shape, Site
from lightstride.models.uneven.experts import Routed
from lightstride.prune.cut.gram import add_cross, add_gram, packed_size, unpacked
from lightstride.prune.cut.materialize import mask
from lightstride.prune.cut.refit import CutSite
from lightstride.prune.cut.statistics import SiteStatistics, stream_blocks

FAMILIES = [adapter.family for adapter in ADAPTERS]


def tokens(num_windows: int = 5, length: int = 12) -> Tensor:
    return torch.randint(256, (num_windows, length), generator=torch.Generator().manual_seed(7))


def whole(inputs: Tensor | Routed) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else inputs.whole()


def plain_grams(model: PreTrainedModel, tokens_NL: Tensor) -> dict[Site, Tensor]:
    """Gram matrices by hooks in whole forwards, in fp64: the plain twin of the stream."""
    adapter = adapter_for(model.config)
    grams: dict[Site, Tensor] = {}
    handles = []
    geometry = adapter.geometry(model.config)
    for site in geometry.sites:
        linear = adapter.output_layer(adapter.blocks(model)[site.block], site.kind)

        def note(_: object, args: tuple[Tensor, ...], site: Site = site) -> None:
            rows = whole(args[0]).flatten(0, -2).double()
            products = own_blocks(rows.T @ rows, geometry.shape(site))
            grams[site] = grams.get(site, 0) + products

        handles.append(linear.register_forward_pre_hook(note))
    with torch.no_grad():
        for window in tokens_NL:
            model(input_ids=window[None])
    for handle in handles:
        handle.remove()
    return grams


def smaller(shape: Shape) -> Shape:
    if isinstance(shape, FFNShape):
        return FFNShape(shape.num_channels // 2 + 1)
    return AttentionShape(max(1, shape.num_kv_heads - 1), shape.queries_per_group)


class Visitor:
    """Notes all statistics; cuts every site if asked to."""

    def __init__(self, geometry: Geometry, cut: bool = False) -> None:
        self.geometry, self.cut = geometry, cut
        self.seen: dict[Site, SiteStatistics] = {}
        self.levels: dict[Site, CutSite] = {}

    def __call__(self, site: Site, statistics: SiteStatistics) -> CutSite | None:
        self.seen[site] = statistics
        if not self.cut:
            return None
        dense = self.geometry.shape(site)
        weight = statistics.weights[OUTPUT_NAME[site.kind]]
        self.levels[site] = one_level(weight, statistics.gram, smaller(dense), dense)
        return self.levels[site]

    @property
    def grams(self) -> dict[Site, Tensor]:
        return {site: statistics.gram for site, statistics in self.seen.items()}


def run(model: PreTrainedModel, *, cut: bool = False, **options: object) -> Visitor:
    adapter = adapter_for(model.config)
    visitor = Visitor(adapter.geometry(model.config), cut)
    stream_blocks(Resident(model), tokens(), visitor, **options)
    return visitor


def same(one: dict[Site, Tensor], other: dict[Site, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[site], other[site]) for site in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 8, 50])
def test_gram_from_half_the_products_is_exact(dtype: torch.dtype, width: int) -> None:
    rows = torch.randn(500, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = torch.zeros(packed_size(width))
    assert len(packed) <= max(9 / 16 * width**2 + width, 36)
    add_gram(packed, rows[:300])
    add_gram(packed, rows[300:])
    gram, exact = unpacked(packed, width), rows.double().T @ rows.double()
    assert torch.equal(gram, gram.T)
    torch.testing.assert_close(gram.double(), exact, rtol=1e-5, atol=1e-3)
    cross = torch.zeros(width, 20)
    add_cross(cross, rows, rows[:, :1].expand(-1, 20))
    torch.testing.assert_close(cross.double(), exact[:, :1].expand(-1, 20), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_stream_agrees_with_whole_forwards(family: str) -> None:
    model = TINY[family]()
    expected = plain_grams(model, tokens())
    visitor = run(model)
    assert list(visitor.seen) == sorted(expected)
    for site, gram in visitor.grams.items():
        torch.testing.assert_close(gram.double(), expected[site], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_site_sees_the_cuts_before_it(family: str) -> None:
    model = TINY[family]()
    visitor = run(model, cut=True)
    for site, gram in visitor.grams.items():
        before = {other: level for other, level in visitor.levels.items() if other < site}
        expected = plain_grams(mask(model, adapter_for(model.config), before), tokens())[site]
        scale = float(expected.diagonal(dim1=-2, dim2=-1).mean())
        torch.testing.assert_close(gram.double(), expected, rtol=1e-3, atol=1e-4 * scale)


def test_model_is_left_alone() -> None:
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [id(module) for module in model.modules()]
    run(model, cut=True)
    assert modules == [id(module) for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    model = tiny_llama()
    expected = run(model, cut=True).grams
    for site, gram in run(model, cut=True, batch_size=batch_size).grams.items():
        torch.testing.assert_close(gram, expected[site], rtol=1e-4, atol=1e-4)


def test_activations_on_disk_change_nothing(tmp_path: Path) -> None:
    model = tiny_llama()
    spilled = run(model, cut=True, spill=tmp_path / "activations")
    assert same(run(model, cut=True).grams, spilled.grams)
    assert not list(tmp_path.iterdir())


def test_finished_sites_are_passed_by() -> None:
    model = tiny_llama(num_layers=3)
    whole = run(model, cut=True)
    finished = {site: whole.levels[site] for site in list(whole.levels)[:3]}
    rest = run(model, cut=True, finished=finished)
    assert list(rest.seen) == list(whole.seen)[3:]
    assert same(rest.grams, {site: whole.grams[site] for site in rest.seen})


def by_hooks(model: PreTrainedModel, site: Site) -> tuple[Tensor, Tensor]:
    """Inputs of an FFN's output weights and outputs of its block, in fp64, by whole forwards."""
    adapter = adapter_for(model.config)
    block = adapter.blocks(model)[site.block]
    inputs, outputs = [], []
    handles = [
        adapter.output_layer(block, site.kind).register_forward_pre_hook(
            lambda _, args: inputs.append(whole(args[0]).flatten(0, -2))
        ),
        block.register_forward_hook(lambda _, __, result: outputs.append(result.flatten(0, -2))),
    ]
    with torch.no_grad():
        model(input_ids=tokens())
    for handle in handles:
        handle.remove()
    return inputs[0].double(), outputs[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_relative_sums_and_drift_are_those_of_whole_forwards(family: str) -> None:
    model = TINY[family]()
    adapter = adapter_for(model.config)
    visitor = run(model, cut=True, weigh_tokens=True, drift=True)
    site = max(visitor.seen)
    del visitor.levels[site]
    input_TI, after_TO = by_hooks(mask(model, adapter, visitor.levels), site)
    _, dense_TO = by_hooks(model, site)
    normalizes = family in CHANGED_ANSWERS
    weight_T1 = 1 if normalizes else 1 / after_TO.square().mean(1, keepdim=True)
    geometry = adapter.geometry(model.config)
    shares = geometry.experts_per_token if geometry.experts(site) else 1
    gram = own_blocks((weight_T1 * input_TI).T @ input_TI, geometry.shape(site))
    drift = (weight_T1 * input_TI).T @ (dense_TO - after_TO) / shares
    seen = visitor.seen[site]
    torch.testing.assert_close(seen.gram.double(), gram, rtol=1e-3, atol=1e-4 * gram.max())
    if normalizes:
        assert seen.drift_IO is None
        return
    assert seen.drift_IO is not None
    assert drift.norm() > 0.01 * gram.norm() / shares
    torch.testing.assert_close(
        seen.drift_IO.double(), drift, rtol=1e-3, atol=1e-4 * drift.abs().max()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_drifts_before_the_first_cut(family: str) -> None:
    model = TINY[family]()
    for seen in run(model, drift=True).seen.values():
        assert family in CHANGED_ANSWERS or seen.drift_IO is not None
        assert seen.drift_IO is None or not seen.drift_IO.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_shortcuts_of_additive_blocks_change_no_bit(family: str) -> None:
    model = TINY[family]()
    plain = run(model, cut=True, weigh_tokens=True, drift=True, use_additivity=False)
    quick = run(model, cut=True, weigh_tokens=True, drift=True)
    assert same(plain.grams, quick.grams)
    for site, seen in plain.seen.items():
        other = quick.seen[site].drift_IO
        assert seen.drift_IO is other is None or torch.equal(seen.drift_IO, other)


def test_drift_changes_nothing_else() -> None:
    model = tiny_llama()
    assert same(run(model, cut=True).grams, run(model, cut=True, drift=True).grams)
