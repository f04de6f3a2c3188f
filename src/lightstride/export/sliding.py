"""Checkpoint folders whose config says which blocks have a sliding window: a memory plan by block
for engines that know nothing of ours.

transformers names a kind of attention for every block (`layer_types`) and one `sliding_window`: a
query sees so many tokens, its own among them, and the cache of such a block keeps one fewer.
Qwen2 and Qwen3 read it as they are.  Llama's classes do not, so Llama and Mistral become Ministral,
which is the same mathematics with such windows.  The weights are copied as they are.

Of Gemma 3 the blocks with windows have another rotary base, so others cannot get one; Phi-3, OLMo
2, Granite and OPT have no windows by block.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from lightstride.errors import ExportError
from lightstride.files import whole_folder
from lightstride.models.shapes import Geometry

CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("ministral", "MinistralForCausalLM"),
    "mistral": ("ministral", "MinistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
"""By family the model type and class of transformers that reads windows by block."""
NOT_OURS = ("_name_or_path", "attention_bias", "mlp_bias", "pretraining_tp")
"""What a Llama's config says and a Ministral's does not."""
NOT_COPIED = ("config.json", "lightstride.json")


def write_sliding(
    folder: Path,
    config: PreTrainedConfig,
    geometry: Geometry,
    windows: Sequence[int | None],
    output: Path,
) -> Mapping[str, object]:
    """Write a checkpoint folder with a window for some blocks, None for the others; its config.

    ExportError if no class of transformers has such windows.
    """
    check_sliding(config, geometry, windows)
    document = sliding_config(config, geometry, windows)
    with whole_folder(output) as partial:
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".py" and path.name not in NOT_COPIED:
                shutil.copyfile(path, partial / path.name)
        (partial / "config.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return document


def check_sliding(
    config: PreTrainedConfig, geometry: Geometry, windows: Sequence[int | None]
) -> None:
    """Raise ExportError for a model that cannot be written so."""
    if geometry.family not in CLASSES:
        known = ", ".join(CLASSES)
        raise ExportError(
            f"no class of transformers gives blocks of {geometry.family} a window each; of these "
            f"there is one: {known}"
        )
    if len({*geometry.attention}) > 1 or len({*geometry.ffn}) > 1:
        raise ExportError(
            "the blocks differ in width, and the classes that have windows by block take one width"
        )
    if geometry.family == "llama" and (config.attention_bias or config.mlp_bias):
        raise ExportError(
            "Ministral, which has windows by block, has no biases, and this Llama has"
        )
    if len({window for window in windows if window}) > 1:
        raise ExportError("a config has one size of window, and the plan has several")


def sliding_config(
    config: PreTrainedConfig, geometry: Geometry, windows: Sequence[int | None]
) -> Mapping[str, object]:
    """The config.json of a checkpoint with windows by block."""
    model_type, name = CLASSES[geometry.family]
    settings = {key: value for key, value in config.to_dict().items() if key not in NOT_OURS}
    if model_type == "ministral":
        settings["head_dim"] = geometry.head_dim
    else:  # vLLM's own Qwen has no windows by block, and stops at this number instead of ignoring
        settings |= {"use_sliding_window": True, "max_window_layers": 0}
    return settings | {
        "architectures": [name],
        "model_type": model_type,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
        "sliding_window": next((window for window in windows if window), None),
    }
