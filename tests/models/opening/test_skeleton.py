"""Models without their weights, of every family."""

from pathlib import Path

import pytest
import torch

from helpers.toys import TINY
from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.skeleton import load_skeleton, one_block


@pytest.mark.parametrize("family", TINY)
def test_a_skeleton_has_every_shape_and_no_weights(family: str, tmp_path: Path) -> None:
    model = TINY[family]()
    model.config.save_pretrained(tmp_path)
    bones = load_skeleton(str(tmp_path), dtype=torch.bfloat16)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in bones.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in bones.parameters())
    assert bones.dtype == torch.bfloat16
    adapter = adapter_for(model.config)
    assert adapter.geometry(bones.config) == adapter.geometry(model.config)


@pytest.mark.parametrize("family", TINY)
def test_one_block_is_the_first_block(family: str) -> None:
    config = TINY[family]().config
    adapter = adapter_for(config)
    model = one_block(config, torch.float32, "cpu")
    whole, alone = adapter.geometry(config), adapter.geometry(model.config)
    assert (alone.attention, alone.ffn) == (whole.attention[:1], whole.ffn[:1])
    assert alone.hidden_size == whole.hidden_size
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}')
    with pytest.raises(ModelError, match=r"config\.json"):
        load_skeleton(str(tmp_path), dtype=torch.float32)
