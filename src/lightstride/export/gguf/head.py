"""An EAGLE-3 head as a GGUF of its own, which llama.cpp drafts with (`--spec-type draft-eagle3`).

    llama-server -m base.gguf -md head.gguf --spec-type draft-eagle3 --spec-draft-n-max 3

The `gguf` package knows no such architecture, so keys and names are written here.  Facts: llama.cpp
`src/models/eagle3.cpp` and `conversion/llama.py`, October 2026 (tried: xllamacpp 2026.10.11549).
The vocabulary is the base's; `d2t` holds whole ids, not offsets; rows of queries and keys change
places as in `llama`.  The base is another file, in one of the architectures that hand out states.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase

from lightstride.errors import ExportError
from lightstride.export.gguf.architecture import architecture_for
from lightstride.export.gguf.quantize import (
    FILE_TYPES,
    fitting_type,
    numpy_of,
    pack,
    packed_size,
    wanted_type,
)
from lightstride.export.gguf.rope import Metadata, rope_metadata
from lightstride.export.gguf.tensors import interleave_rows
from lightstride.export.gguf.vocabulary import read_vocabulary
from lightstride.export.gguf.write import QUANTIZATION_VERSION, GGUFFile, add_metadata
from lightstride.files import whole_file
from lightstride.models.shapes import Geometry

HEAD_ARCHITECTURE = "eagle3"
BASES = ("llama", "qwen3")
"""Architectures of llama.cpp that hand their states to a head, of those that are written here."""
HEAD_NAMES: Mapping[str, str] = {
    "midlayer.input_layernorm": "blk.0.attn_norm",
    "midlayer.hidden_norm": "blk.0.attn_norm_2",
    "midlayer.self_attn.q_proj": "blk.0.attn_q",
    "midlayer.self_attn.k_proj": "blk.0.attn_k",
    "midlayer.self_attn.v_proj": "blk.0.attn_v",
    "midlayer.self_attn.o_proj": "blk.0.attn_output",
    "midlayer.post_attention_layernorm": "blk.0.ffn_norm",
    "midlayer.mlp.gate_proj": "blk.0.ffn_gate",
    "midlayer.mlp.up_proj": "blk.0.ffn_up",
    "midlayer.mlp.down_proj": "blk.0.ffn_down",
    "fc": "fc",
    "norm": "output_norm",
    "lm_head": "output",
    "embed_tokens": "token_embd",
    "input_norm": "enc.output_norm",
}
"""Names of the flat layout to llama.cpp's, both without `.weight`."""


def refuse_base_for_head(config: PreTrainedConfig, geometry: Geometry) -> None:
    """Raise ExportError where llama.cpp cannot draft for this base with a head."""
    name = architecture_for(config, geometry).name
    if name not in BASES:
        raise ExportError(
            f"llama.cpp runs this base as {name!r}, which gives a draft head no states (those of "
            f"{', '.join(BASES)} do); --to speculators writes the head for vLLM"
        )


def write_head_gguf(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    taps: Sequence[int],
    base: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    dtype: str,
    name: str,
) -> GGUFFile:
    """Write a head, given its config and tensors in the flat layout (`d2t` with whole ids).

    `taps` are the numbers of blocks after which the base is read, `base` its config.
    """
    head_dim = settings["head_dim"]
    metadata, tables = head_metadata(settings, taps)
    vocabulary = read_vocabulary(tokenizer, base, ())
    plan = plan_head(tensors, head_dim, dtype)
    writer = GGUFWriter(None, HEAD_ARCHITECTURE)
    add_metadata(
        writer,
        {
            "general.type": "model",
            "general.name": name,
            "general.file_type": int(FILE_TYPES[dtype]),
            "general.quantization_version": QUANTIZATION_VERSION,
            **{f"{HEAD_ARCHITECTURE}.{key}": value for key, value in metadata.items()},
            **vocabulary.metadata(),
        },
    )
    with whole_file(path) as partial, closing(writer):
        for key, values in tables.items():
            writer.add_tensor_info(key, (len(values),), np.dtype(np.float32), 4 * len(values))
        for target, tensor, kind, _ in plan:
            size = packed_size(tuple(tensor.shape), kind)
            shape, number = tuple(tensor.shape), np.dtype(np.float32)
            writer.add_tensor_info(target, shape, number, size, raw_dtype=kind)
        ids_M = numpy_of(tensors["d2t"].to(torch.int64))
        writer.add_tensor_info("d2t", ids_M.shape, ids_M.dtype, ids_M.nbytes)
        writer.write_header_to_file(path=partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in tables.values():
            writer.write_tensor_data(np.array(values, dtype=np.float32))
        for _, tensor, kind, _ in plan:
            writer.write_tensor_data(pack(tensor, kind))
        writer.write_tensor_data(ids_M)
    return GGUFFile(
        path=path,
        architecture=HEAD_ARCHITECTURE,
        num_bytes=path.stat().st_size,
        fallbacks=tuple(
            f"{target}: {kind.name.lower()}" for target, _, kind, wanted in plan if kind != wanted
        ),
    )


Planned = tuple[str, Tensor, GGMLQuantizationType, GGMLQuantizationType]
"""Name, numbers, type, and the type that was asked for."""


def plan_head(tensors: Mapping[str, Tensor], head_dim: int, dtype: str) -> list[Planned]:
    """All tensors of the file but `d2t`."""
    plan: list[Planned] = []
    for source, tensor in tensors.items():
        if source == "d2t":
            continue
        target = f"{HEAD_NAMES[source.removesuffix('.weight')]}.weight"
        wanted = GGMLQuantizationType.F32
        if tensor.dim() > 1:
            wanted = wanted_type(target, dtype, None, 1, is_head=target == "output.weight")
        if source.split(".")[-2] in ("q_proj", "k_proj"):
            tensor = interleave_rows(tensor, head_dim)
        plan.append((target, tensor, fitting_type(wanted, tensor.shape[-1]), wanted))
    return plan


def head_metadata(
    settings: Mapping[str, Any], taps: Sequence[int]
) -> tuple[Metadata, dict[str, tuple[float, ...]]]:
    """Keys behind `eagle3.` and tables of positions."""
    head_dim: int = settings["head_dim"]
    rope = {"rope_theta": settings["rope_theta"], **(settings["rope_scaling"] or {})}
    rope.setdefault("rope_type", "default")
    longest = settings["max_position_embeddings"]
    layer = LlamaConfig(rope_parameters=rope, max_position_embeddings=longest)
    keys, tables = rope_metadata(layer, head_dim)
    return {
        "vocab_size": settings["vocab_size"],
        "context_length": longest,
        "embedding_length": settings["hidden_size"],
        "block_count": 1,
        "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": settings["num_attention_heads"],
        "attention.head_count_kv": settings["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": settings["rms_norm_eps"],
        "target_layers": list(taps),
        "target_hidden_size": settings["target_hidden_size"],
        "norm_before_residual": settings["norm_before_residual"],
        "norm_before_fc": settings["norm_before_fc"],
        **keys,
    }, tables
