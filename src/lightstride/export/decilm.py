"""Checkpoint folders for engines that want another description of the same weights.

DeciLM (NVIDIA's Nemotron-NAS) is built into vLLM, SGLang and TensorRT-LLM: query and KV heads
are the same in all blocks but those without attention (`no_op`), an FFN's width is a multiple of
256 given as `ffn_mult`, a share of the hidden size: width = 2/3 * ffn_mult * hidden size, rounded
up.  The weights are copied as they are.  Which shapes a target allows while pruning is in
`prune/space/targets.py`, which families DeciLM runs in `models/engines.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lightstride.errors import ExportError
from lightstride.export import modeling_decilm
from lightstride.files import whole_folder
from lightstride.models.engines import DECILM
from lightstride.models.shapes import NO_ATTENTION, Geometry

MODULE = Path(modeling_decilm.__file__)
NOT_COPIED = ("config.json", "lightstride.json")


def write_decilm(
    folder: Path, config: PreTrainedConfig, geometry: Geometry, output: Path
) -> dict[str, Any]:
    """Write a checkpoint folder as DeciLM; its config. ExportError if DeciLM cannot describe it."""
    check_decilm(geometry)
    document = decilm_config(config, geometry)
    with whole_folder(output) as partial:
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".py" and path.name not in NOT_COPIED:
                shutil.copyfile(path, partial / path.name)
        shutil.copyfile(MODULE, partial / MODULE.name)
        (partial / "config.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return document


def check_decilm(geometry: Geometry) -> None:
    """Raise ExportError for a model that DeciLM cannot describe."""
    if geometry.family not in DECILM:
        raise ExportError(
            f"DeciLM is Llama's mathematics: {', '.join(DECILM)}, not {geometry.family}"
        )
    if geometry.attention[0] == NO_ATTENTION:
        raise ExportError(
            "block 0 has no attention, which DeciLM engines need: prune with --target decilm"
        )
    if not set(geometry.attention) <= {geometry.attention[0], NO_ATTENTION}:
        raise ExportError(
            "DeciLM engines want the same heads in every block, and here they differ: "
            "prune with --target decilm"
        )
    for block, ffn in enumerate(geometry.ffn):
        if ffn.num_channels % modeling_decilm.WIDTH_MULTIPLE:
            raise ExportError(
                f"block {block} has {ffn.num_channels} FFN channels, and DeciLM takes multiples of "
                f"{modeling_decilm.WIDTH_MULTIPLE}: prune with --target decilm"
            )


def decilm_config(config: PreTrainedConfig, geometry: Geometry) -> dict[str, Any]:
    """The config.json of a DeciLM checkpoint."""
    attention = geometry.attention[0]
    settings = config.to_dict()
    for key in ("per_layer_config", "layer_types", "sliding_window", "_name_or_path"):
        settings.pop(key, None)
    window = getattr(config, "sliding_window", None)
    longest = int(config.max_position_embeddings)
    return settings | {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": modeling_decilm.DeciLMConfig.model_type,
        "auto_map": {
            "AutoConfig": f"{MODULE.stem}.DeciLMConfig",
            "AutoModelForCausalLM": f"{MODULE.stem}.DeciLMForCausalLM",
        },
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": geometry.head_dim,
        "intermediate_size": max(ffn.num_channels for ffn in geometry.ffn),
        "max_position_embeddings": longest if window is None else min(longest, window),
        "qkv_bias": geometry.family == "qwen2" or bool(getattr(config, "attention_bias", False)),
        "block_configs": [
            {
                "attention": {
                    "n_heads_in_group": own.queries_per_group or None,
                    "no_op": own == NO_ATTENTION,
                    "replace_with_linear": False,
                },
                "ffn": {
                    "ffn_mult": ffn_mult(ffn.num_channels, geometry.hidden_size),
                    "no_op": False,
                    "replace_with_linear": False,
                },
            }
            for own, ffn in zip(geometry.attention, geometry.ffn, strict=True)
        ],
    }


def ffn_mult(width: int, hidden_size: int) -> float:
    """The multiplier that engines turn back into this width."""
    multiplier = 3 * width / (2 * hidden_size)
    if modeling_decilm.ffn_width(multiplier, hidden_size) > width:  # rounded up past it
        multiplier *= 1 - 1e-9
    assert modeling_decilm.ffn_width(multiplier, hidden_size) == width
    return multiplier
