"""What `lightstride export` does with a draft head: its folder in the layout of an engine.

What an engine would compute wrongly is refused before anything is written.  Facts: SGLang 0.5.23
`llama_eagle3.py` and `models/llama.py`, vLLM 0.33 `nemotron_nas.py` and `llama_eagle3.py`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lightstride.config import ExportConfig
from lightstride.errors import ExportError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_config, local_folder, locate
from lightstride.smash.model.eagle3 import Eagle3Config, default_taps
from lightstride.smash.model.eagle3_files import read_head, write_head
from lightstride.smash.model.headed import HEAD, read_headed

LAYOUTS: Mapping[str, Literal["flat", "speculators"]] = {
    "eagle3": "flat",
    "speculators": "speculators",
}


def export_head(config: ExportConfig, output: Path) -> Mapping[str, object]:
    """Write the head of a model that has one; what was written, as printed by `--json`."""
    if config.to not in LAYOUTS:
        raise ExportError(
            f"{config.model} is a draft head, which is not written as {config.to}; --to eagle3 "
            "and --to speculators write it, and llama.cpp's own converter reads what they write"
        )
    folder = local_folder(config.model)
    base = read_headed(folder).base
    settings = load_config(base, locate(base), trust_remote_code=config.trust_remote_code)
    num_blocks = adapter_for(settings).geometry(settings).num_blocks
    head = read_head(folder / HEAD, num_blocks=num_blocks)
    if config.to == "eagle3":
        refuse_for_flat(config.model, head.config, num_blocks)
    write_head(
        head,
        output,
        layout=LAYOUTS[config.to],
        base=base,
        architectures=list(settings.architectures or []),
        num_blocks=num_blocks,
    )
    sys.stdout.write(f"{output}: an EAGLE-3 head for {base}, layout {config.to}\n")
    return {"output": str(output), "format": config.to, "base": base}


def refuse_for_flat(model: str, head: Eagle3Config, num_blocks: int) -> None:
    """Refuse what the readers of the flat layout do not compute alike."""
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
    if head.taps != default_taps(num_blocks):
        raise ExportError(
            f"{model}: the head reads the base after blocks {list(head.taps)}; SGLang and vLLM "
            "count such numbers differently in this layout; --to speculators names them for vLLM"
        )
