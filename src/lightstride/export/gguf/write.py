"""Write a model as one GGUF file, for llama.cpp and what is built on it (Ollama).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  Tensors are read, changed and
written one at a time, so memory is bounded by the largest one.  The file is written under a
temporary name and renamed.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lightstride.errors import ExportError
from lightstride.export.gguf.architecture import architecture_for, describe
from lightstride.export.gguf.quantize import FILE_TYPES, pack, packed_size
from lightstride.export.gguf.rope import Metadata
from lightstride.export.gguf.tensors import GGUFTensor, load_tensor, plan_tensors
from lightstride.export.gguf.vocabulary import read_vocabulary
from lightstride.export.gguf.weights import Weights
from lightstride.files import whole_file
from lightstride.models.engines import LLAMA_CPP
from lightstride.models.shapes import Geometry
from lightstride.progress import Bar

QUANTIZATION_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """The file that was written."""

    path: Path
    architecture: str
    num_bytes: int
    fallbacks: tuple[str, ...]
    """Tensors whose rows do not divide into the wanted type, such as `blk.0.ffn_down: f16`."""


def write_gguf(
    weights: Weights,
    config: PreTrainedConfig,
    geometry: Geometry,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    dtype: str,
    name: str,
    end_tokens: tuple[int, ...] = (),
    progress: bool = False,
) -> GGUFFile:
    """Write one model; raises ExportError, before writing, for what llama.cpp cannot run right."""
    architecture = architecture_for(config, geometry)
    description = describe(config, geometry, architecture)
    naming = LLAMA_CPP[geometry.family].same_widths
    tensors = plan_tensors(weights, geometry, architecture, naming, dtype)
    vocabulary = read_vocabulary(tokenizer, config, end_tokens)
    writer = GGUFWriter(None, architecture.name)
    add_metadata(
        writer,
        {
            "general.type": "model",
            "general.name": name,
            "general.file_type": int(FILE_TYPES[dtype]),
            "general.quantization_version": QUANTIZATION_VERSION,
            **description.metadata,
            **vocabulary.metadata(),
        },
    )
    with whole_file(path) as partial, closing(writer):
        write_tensors(
            writer, weights, tensors, description.tables, partial, geometry.head_dim, progress
        )
    return GGUFFile(
        path=path,
        architecture=architecture.name,
        num_bytes=path.stat().st_size,
        fallbacks=tuple(
            f"{tensor.name}: {tensor.kind.name.lower()}"
            for tensor in tensors
            if tensor.kind != tensor.wanted
        ),
    )


def add_metadata(writer: GGUFWriter, metadata: Metadata) -> None:
    """Add keys with the types that llama.cpp expects of them."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def write_tensors(
    writer: GGUFWriter,
    weights: Weights,
    tensors: list[GGUFTensor],
    tables: Mapping[str, tuple[float, ...]],
    path: Path,
    head_dim: int,
    progress: bool,
) -> None:
    """Write the whole file: what stands before the tensors, then one tensor after the other."""
    for name, values in tables.items():
        writer.add_tensor_info(name, (len(values),), np.dtype(np.float32), 4 * len(values))
    for tensor in tensors:
        num_bytes = packed_size(tensor.shape, tensor.kind)
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, num_bytes, raw_dtype=tensor.kind)
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in tables.values():
        writer.write_tensor_data(np.array(values, dtype=np.float32))
    for tensor in Bar(tensors, desc="writing", disable=not progress):
        loaded = load_tensor(weights, tensor, head_dim)
        if not torch.isfinite(loaded).all():
            raise ExportError(f"{', '.join(tensor.sources)}: not all numbers are finite")
        writer.write_tensor_data(pack(loaded, tensor.kind))
