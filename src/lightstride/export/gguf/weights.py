"""Tensors of a checkpoint by name, read one at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor, nn

from lightstride.errors import ModelError


class Weights(Protocol):
    """Named tensors whose shapes are known before they are read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        ...

    def load(self, name: str) -> Tensor:
        """One tensor."""
        ...


class FolderWeights:
    """The safetensors files of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        else:
            files = {"model.safetensors"}
        self._files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(files):
            path = folder / file
            if not path.is_file():
                raise ModelError(f"{folder} has no {file}: only safetensors checkpoints are read")
            with safe_open(path, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118, not a mapping
                    self._files[name] = path
                    shapes[name] = tuple(handle.get_slice(name).get_shape())
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def load(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor


class ModelWeights:
    """The tensors of a model in memory."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = model.state_dict()
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in self._tensors.items()
        }

    def load(self, name: str) -> Tensor:
        tensor: Tensor = self._tensors[name]
        return tensor
