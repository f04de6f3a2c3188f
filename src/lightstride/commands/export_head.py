"""What `lightstride export` does with a draft head: its folder in the layout of an engine.

What an engine would compute wrongly is refused before anything is written.  Facts: SGLang 0.5.23
`llama_eagle3.py` and `models/llama.py`, vLLM 0.33 `nemotron_nas.py` and `llama_eagle3.py`.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig

from lightstride.config import ExportConfig
from lightstride.errors import ExportError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_config, load_tokenizer, local_folder, locate
from lightstride.models.shapes import Geometry
from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head, default_taps
from lightstride.smash.model.eagle3_files import flat_config, read_head, stored_tensors, write_head
from lightstride.smash.model.headed import HEAD, read_headed

CAN_WRITE_GGUF = find_spec("gguf") is not None
if CAN_WRITE_GGUF:
    from lightstride.export.gguf.head import refuse_base_for_head, write_head_gguf

LAYOUTS: Mapping[str, Literal["flat", "speculators"]] = {
    "eagle3": "flat",
    "speculators": "speculators",
}


def export_head(config: ExportConfig, output: Path) -> Mapping[str, object]:
    """Write the head of a model that has one; what was written, as printed by `--json`."""
    if config.to not in (*LAYOUTS, "gguf"):
        raise ExportError(
            f"{config.model} is a draft head, which is not written as {config.to}; --to eagle3, "
            "--to speculators and --to gguf write it"
        )
    folder = local_folder(config.model)
    base = read_headed(folder).base
    settings = load_config(base, locate(base), trust_remote_code=config.trust_remote_code)
    geometry = adapter_for(settings).geometry(settings)
    head = read_head(folder / HEAD, num_blocks=geometry.num_blocks)
    if config.to == "gguf":
        return export_head_gguf(config, head, settings, geometry, output)
    if config.to == "eagle3":
        refuse_for_flat(config.model, head.config, geometry)
    write_head(
        head,
        output,
        layout=LAYOUTS[config.to],
        base=base,
        architectures=list(settings.architectures or []),
        num_blocks=geometry.num_blocks,
    )
    sys.stdout.write(f"{output}: an EAGLE-3 head for {base}, layout {config.to}\n")
    return {"output": str(output), "format": config.to, "base": base}


def export_head_gguf(
    config: ExportConfig,
    head: Eagle3Head,
    settings: PreTrainedConfig,
    geometry: Geometry,
    output: Path,
) -> Mapping[str, object]:
    """Write the head for llama.cpp; its base is exported on its own."""
    if not CAN_WRITE_GGUF:
        raise ExportError("writing a GGUF needs the package gguf; pip install gguf")
    refuse_base_for_head(settings, geometry)
    for name, given in (
        ("fc_norm", head.config.fc_norm),
        ("norm_output", head.config.norm_output),
        ("sliding_window", head.config.window is not None),
    ):
        if given:
            raise ExportError(
                f"{config.model}: the head has {name}, which llama.cpp does not know; "
                "--to speculators keeps it, for vLLM"
            )
    if len(head.config.taps) != 3:
        raise ExportError(
            f"{config.model}: the head reads {len(head.config.taps)} states, llama.cpp 3; "
            "--to speculators keeps them, for vLLM"
        )
    written = write_head_gguf(
        flat_config(head.config),
        {**stored_tensors(head, "flat"), "d2t": head.tokens_of_rows()},
        head.config.taps,
        settings,
        load_tokenizer(config.model),
        output,
        dtype=config.dtype,
        name=Path(config.model).name,
    )
    megabytes = written.num_bytes / 1e6
    sys.stdout.write(f"{output}: {written.architecture}, {config.dtype}, {megabytes:.1f} MB\n")
    return {
        "output": str(output),
        "format": "gguf",
        "architecture": written.architecture,
        "dtype": config.dtype,
        "bytes": written.num_bytes,
        "fallbacks": list(written.fallbacks),
    }


def refuse_for_flat(model: str, head: Eagle3Config, geometry: Geometry) -> None:
    """Refuse what the readers of the flat layout do not compute alike."""
    if len({*geometry.attention}) > 1 or len({*geometry.ffn}) > 1:
        raise ExportError(
            f"{model}: the blocks of its base differ in width; SGLang and llama.cpp take no head "
            "on such a base; --to speculators writes it for vLLM, which does"
        )
    if head.norm_before_residual:
        raise ExportError(
            f"{model}: norm_before_residual is true, which SGLang ignores; --to speculators keeps "
            "it, for vLLM"
        )
    if head.window is not None:
        raise ExportError(
            f"{model}: the head attends to {head.window} places alone, which SGLang must be "
            "told by a flag and llama.cpp does not know; --to speculators says it, for vLLM"
        )
    if head.taps != default_taps(geometry.num_blocks):
        raise ExportError(
            f"{model}: the head reads the base after blocks {list(head.taps)}; SGLang and vLLM "
            "count such numbers differently in this layout; --to speculators names them for vLLM"
        )
