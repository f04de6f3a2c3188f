"""Parts of a tensor, read and sampled as the whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.expert_toys import published_qwen3_moe
from lightstride.errors import ModelError
from lightstride.models.fingerprint import model_hash
from lightstride.models.opening.joined_shards import joined_shards
from lightstride.models.opening.load import load_model
from lightstride.models.opening.shards import Shards
from lightstride.models.opening.streamed import open_streamed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    published_qwen3_moe().save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


@pytest.mark.parametrize("dim", [0, 1])
def test_joined_is_concatenated(folder: Path, dim: int) -> None:
    own = "gate_proj" if dim == 0 else "down_proj"
    names = [f"model.layers.1.mlp.experts.{number}.{own}.weight" for number in range(4)]
    shards = Shards.open(folder)
    expected = torch.cat([shards.read(name) for name in names], dim)
    joined = joined_shards("it", shards, {"all": (names, dim), "other": None})
    assert joined.places["all"].shape == expected.shape
    assert not set(names) & set(joined.places)
    assert torch.equal(joined.read("all"), expected)
    picked_N = torch.arange(0, expected.numel(), 7)
    assert torch.equal(joined.sample("all", picked_N), expected.flatten()[picked_N])
    assert torch.equal(joined.read("model.norm.weight"), shards.read("model.norm.weight"))


def test_a_folder_is_the_same_model_streamed_and_whole(folder: Path) -> None:
    whole = load_model(str(folder))
    streamed = open_streamed(str(folder), dtype=torch.float32)
    assert streamed.identity() == model_hash(whole)
    with streamed.blocks() as blocks:
        for index, block in enumerate(blocks):
            for name, parameter in block.named_parameters():
                other = whole.get_parameter(f"model.layers.{index}.{name}")
                assert torch.equal(parameter, other), name


@pytest.mark.parametrize("damage", ["gone", "narrow"])
def test_an_expert_that_is_not_like_the_others_is_named(tmp_path: Path, damage: str) -> None:
    published_qwen3_moe().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name] = tensors[name][:5].contiguous()
    if damage == "gone":
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights .*2\.up_proj|several shapes"):
        open_streamed(str(tmp_path), dtype=torch.float32)
