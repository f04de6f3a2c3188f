"""Tensors of a checkpoint by name, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor, nn

from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import check_weight_files, read_header, weight_files


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
        self._files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        check_weight_files(folder)
        for path in weight_files(folder):
            for name, tensor in read_header(path).items():
                self._files[name] = path
                shapes[name] = tuple(tensor.shape)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def load(self, name: str) -> Tensor:
        path = self._files[name]
        with errors_explained(str(path), "weights"), safe_open(path, framework="pt") as handle:
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
