"""A model's weights into safetensors files, tensor by tensor: never two blocks of them in memory.

Files, names and index are as transformers' `save_pretrained` makes them.  A file's header is
written first, since all sizes are known; then the tensors as the source gives them, in the order
of the model, which is that of its blocks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.models.opening.source import WeightSource
from lightstride.models.tensor_bytes import FLOAT_TYPES, pour

TYPE_NAMES = {dtype: name for name, dtype in FLOAT_TYPES.items()}
SHARD_BYTES = 5_000_000_000
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.shape.numel() * self.dtype.itemsize


def save_weights(
    source: WeightSource, like: PreTrainedModel, folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a source's weights under the names, shapes and order of a model of meta tensors.

    Raises OSError where the disk is full.
    """
    types = {name: parameter.dtype for name, parameter in source.model.named_parameters()}
    entries = [
        Entry(name, parameter.shape, types[name]) for name, parameter in like.named_parameters()
    ]
    shards = split_entries(entries, shard_bytes)
    names = [SINGLE_FILE] if len(shards) == 1 else numbered(len(shards))
    blocks = f"{name_in(like, source.adapter.blocks(like))}."
    tensors = tensors_in_order(source, [entry.name for entry in entries], blocks)
    for name, some in zip(names, shards, strict=True):
        write_shard(folder / name, some, tensors)
    next(tensors, None)  # so that the last block is taken back
    if len(shards) > 1:
        write_index(folder / SHARD_INDEX, dict(zip(names, shards, strict=True)))


def split_entries(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Consecutive entries in shards of at most so many bytes, unless one alone has more."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def numbered(count: int) -> list[str]:
    """Names of so many files."""
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def name_in(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of a module in a model."""
    names: dict[int, str] = {id(each): name for name, each in model.named_modules()}
    return names[id(module)]


def tensors_in_order(source: WeightSource, names: Sequence[str], blocks: str) -> Iterator[Tensor]:
    """The source's parameters of these names; those of blocks, which stand in order, as they pass.

    Names of blocks begin with `blocks` and their number.
    """
    with source.blocks() as passing:
        block, at = next(passing), 0
        for name in names:
            if not name.startswith(blocks):
                yield source.tensor(name)
                continue
            number, _, own = name.removeprefix(blocks).partition(".")
            while at < int(number):
                block, at = next(passing), at + 1
            yield block.get_parameter(own).detach()


def write_shard(path: Path, entries: Sequence[Entry], tensors: Iterator[Tensor]) -> None:
    """Write one file: its header, then so many of the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.num_bytes
        header[entry.name] = {
            "dtype": TYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = next(tensors).to("cpu").contiguous()
            assert (tensor.shape, tensor.dtype) == (entry.shape, entry.dtype), entry.name
            pour(tensor, file)


def write_index(path: Path, shards: Mapping[str, Sequence[Entry]]) -> None:
    """Say which file has which tensor."""
    entries = [entry for some in shards.values() for entry in some]
    index = {
        "metadata": {
            "total_parameters": sum(entry.shape.numel() for entry in entries),
            "total_size": sum(entry.num_bytes for entry in entries),
        },
        "weight_map": {entry.name: name for name, some in shards.items() for entry in some},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
