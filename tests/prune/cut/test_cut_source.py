"""Blocks that are cut when they pass are those of the smaller model, and dense again afterwards."""

from pathlib import Path

import pytest
import torch

from helpers.cuts import logits
from helpers.levels import one_level, own_blocks
from helpers.toys import CHANGED_ANSWERS, TINY, byte_tokenizer
from lightstride.checkpoint import save_checkpoint
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.shapes import NO_ATTENTION, AttentionKept, Site
from lightstride.prune.cut.cut_source import CutSource
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.cut.refit import CutSite

DROPPING = ("llama", "mistral", "qwen2", "qwen3")


def levels_of(model: torch.nn.Module) -> dict[Site, CutSite]:
    """Sites of every second block narrower; the last attention gone where the family allows it."""
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    found: dict[Site, CutSite] = {}
    for site, weight in Resident(model).dense_outputs().items():
        dense = geometry.shape(site)
        if site.block % 2 and site.kind == "ffn":
            gram = own_blocks(torch.eye(weight.shape[1]), dense)
            shape = type(dense)(dense.num_channels // 2)
            found[site] = one_level(weight, gram, shape, dense)
    if model.config.model_type not in DROPPING:
        return found
    last = Site(geometry.num_blocks - 1, "attention")
    found[last] = CutSite(AttentionKept((), ()), torch.zeros(geometry.hidden_size, 0), 0.0)
    assert found[last].kept.shape == NO_ATTENTION
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", sorted(set(TINY) - set(CHANGED_ANSWERS)))
def test_saved_block_by_block_as_whole(name: str, tmp_path: Path) -> None:
    model = TINY[name]()
    before = logits(model)
    levels = levels_of(model)
    model.save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    streamed = open_streamed(str(tmp_path / "dense"), dtype=torch.float32)
    smaller = materialize(model, adapter_for(model.config), levels)
    sources = {"cut": Resident(model), "streamed": streamed}
    save_checkpoint(smaller, byte_tokenizer(), tmp_path / "whole")
    for own, whole in sources.items():
        source = CutSource(whole, levels)
        save_checkpoint(source, byte_tokenizer(), tmp_path / own)
        assert source.shapes == Resident(smaller).shapes
        assert whole.shapes == Resident(model).shapes
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert files(tmp_path / "streamed") == files(tmp_path / "whole")
    assert torch.equal(logits(model), before)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
