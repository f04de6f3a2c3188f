"""From a checkpoint's tensors to a GGUF's: names, order, changes of layout, types.

Rows of queries and keys: transformers turns dimension i with i + d/2 of a head, llama.cpp's
`llama` and `deci` turn 2i with 2i + 1, so rows change places within each head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
from torch import Tensor

from lightstride.errors import ExportError
from lightstride.export.gguf.architecture import Architecture
from lightstride.export.gguf.quantize import fitting_type, wanted_type
from lightstride.export.gguf.weights import Weights
from lightstride.models.shapes import Geometry

FUSED = ("attn_q", "attn_k", "attn_v")
PAIRED = ("attn_q", "attn_k")
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """One tensor of the file and how it is made."""

    name: str
    sources: tuple[str, ...]
    """Names in the checkpoint; several are stacked, the rows of one after those of the other."""
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    wanted: GGMLQuantizationType
    """The type that was asked for; another than `kind` where rows do not divide."""
    interleaved: bool = False
    """Whether rows change places for rotary pairs."""
    offset: float = 0.0
    """Added to every element."""


def plan_tensors(
    weights: Weights,
    geometry: Geometry,
    architecture: Architecture,
    naming: str,
    dtype: str,
) -> list[GGUFTensor]:
    """All tensors of the file; `naming` is the architecture whose names the family maps to."""
    groups: dict[str, dict[str, str]] = {}
    for source, name in gguf_names(weights, geometry, naming).items():
        groups.setdefault(fused_name(name, architecture), {})[name] = source
    return [
        plan_tensor(weights, geometry, architecture, name, parts, dtype)
        for name, parts in groups.items()
    ]


def gguf_names(weights: Weights, geometry: Geometry, naming: str) -> dict[str, str]:
    """The GGUF's name for every tensor that it keeps."""
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == naming)
    table = get_tensor_name_map(MODEL_ARCH(number), geometry.num_blocks)
    names: dict[str, str] = {}
    for source in weights.shapes:
        name = table.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"tensor {source} has no place in a GGUF of architecture {naming}")
        if name != HEAD or not geometry.tied_head:
            names[source] = name
    return names


def fused_name(name: str, architecture: Architecture) -> str:
    """The name of the matrix that this one becomes a part of, or its own."""
    if architecture.fused and layer_name(name) in FUSED:
        return name.replace(layer_name(name), "attn_qkv")
    return name


def layer_name(name: str) -> str:
    """`attn_q` of `blk.3.attn_q.weight`; a name outside the blocks as it is."""
    return name.split(".")[2] if name.startswith("blk.") else name


def plan_tensor(
    weights: Weights,
    geometry: Geometry,
    architecture: Architecture,
    name: str,
    parts: Mapping[str, str],
    dtype: str,
) -> GGUFTensor:
    """How one tensor is made of its parts (GGUF name to checkpoint name)."""
    ordered = sorted(parts, key=lambda part: FUSED.index(layer_name(part)) if len(parts) > 1 else 0)
    sources = tuple(parts[part] for part in ordered)
    shapes = [weights.shapes[source] for source in sources]
    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    wanted = GGMLQuantizationType.F32
    if len(shape) > 1:
        block = int(name.split(".")[1]) if name.startswith("blk.") else None
        is_head = name == HEAD or (name == EMBEDDING and geometry.tied_head)
        wanted = wanted_type(name, dtype, block, geometry.num_blocks, is_head=is_head)
    return GGUFTensor(
        name=name,
        sources=sources,
        shape=shape,
        kind=fitting_type(wanted, shape[-1]),
        wanted=wanted,
        interleaved=architecture.interleaved and layer_name(name) in PAIRED,
        offset=architecture.norm_offset if name.endswith("norm.weight") else 0.0,
    )


def load_tensor(weights: Weights, tensor: GGUFTensor, head_dim: int) -> Tensor:
    """The tensor as the file wants it, not yet packed."""
    parts = [weights.load(source) for source in tensor.sources]
    loaded = parts[0] if len(parts) == 1 else torch.cat(parts)
    if tensor.interleaved:
        loaded = interleave_rows(loaded, head_dim)
    return loaded + tensor.offset if tensor.offset else loaded


def interleave_rows(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows i and i + d/2 of each head side by side; vectors (biases) likewise."""
    heads: Tensor = tensor.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2)
