"""Tensors are read from where they are, whole or in samples."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.toys import tiny_llama
from lightstride.models.opening.shards import Shards


def test_tensors_are_what_was_saved(tmp_path: Path) -> None:
    model = tiny_llama().bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shards = Shards.open(tmp_path)
    assert len({place.path for place in shards.places.values()}) > 1
    assert set(shards.places) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(shards.read(name), tensor)
        picked = torch.tensor([0, tensor.numel() // 2, tensor.numel() - 1])
        assert torch.equal(shards.sample(name, picked), tensor.flatten()[picked])


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layers = {f"model.layers.{i}.scale": torch.tensor(2.0 + i) for i in range(2)}
    save_file({**tensors, **layers, "none": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    shards = Shards.open(tmp_path)
    assert float(shards.read("model.layers.1.scale")) == 3
    assert shards.read("none").shape == (0, 3)
