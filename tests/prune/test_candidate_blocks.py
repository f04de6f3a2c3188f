"""A block takes the widths it is given and is dense again; cut weights are kept up to a bound."""

import torch

from helpers.toys import tiny_llama
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import FFNShape, Shape, Site
from lightstride.prune.candidate_blocks import CandidateBlock, WeightCache, num_bytes
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.cut.refit import CutSite, prune_site


def test_weights_are_kept_up_to_a_bound() -> None:
    source = Resident(tiny_llama())
    dense = DenseSites.of(source.model, source.adapter)
    made: list[Shape] = []

    def level_of(site: Site, shape: Shape) -> CutSite:
        made.append(shape)
        weight_OI = dense.weights[site]["down"]
        gram_II = torch.eye(weight_OI.shape[1])
        return prune_site(weight_OI, gram_II, [shape], dense.geometry.shape(site))[0]

    site, shapes = Site(0, "ffn"), [FFNShape(16), FFNShape(24), FFNShape(32)]
    size = num_bytes(WeightCache(dense, level_of, 1 << 20)(site, shapes[-1])[0])
    made.clear()
    cache = WeightCache(dense, level_of, 2 * size)
    for shape in (*shapes, *shapes[1:], shapes[0]):
        assert cache(site, shape)[0]["down"].shape == (32, shape.num_channels)
    assert made == [*shapes, shapes[0]]
    assert cache(site, FFNShape(48))[0] is dense.weights[site]
    block = CandidateBlock(source.adapter, source.adapter.blocks(source.model)[0], 0, cache)
    before = source.adapter.read(block.block, "ffn")["down"].data_ptr()
    block.install({"ffn": FFNShape(24)})
    assert source.adapter.shape(block.block, "ffn") == FFNShape(24)
    block.restore()
    assert source.adapter.read(block.block, "ffn")["down"].data_ptr() == before
