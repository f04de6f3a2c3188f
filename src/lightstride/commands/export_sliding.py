"""What `lightstride export --to sliding` does: the base of a smashed model, with the windows of its
memory plan by block in the config."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lightstride.checkpoint import memory_of
from lightstride.config import ExportConfig
from lightstride.errors import ExportError
from lightstride.export.sliding import write_sliding
from lightstride.memory.attention import sliding_of
from lightstride.memory.plan import ALL, MemoryPlan
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, local_folder
from lightstride.smash.model.graft_files import read_config


def export_sliding(config: ExportConfig, output: Path) -> Mapping[str, object]:
    """Write the base with a plan's windows; what was written, as printed by `--json`."""
    base = read_config(config.model).base
    model = load_model(base, dtype=torch.bfloat16, trust_remote_code=config.trust_remote_code)
    memory = memory_of(config.model, model, config.kv, "model")
    if memory is None:
        raise ExportError(
            f"{config.model} has no memory plan to write, or keeps the full cache; make one with: "
            f"lightstride smash {config.model} -o NEW --kv 0.5 --kv-by block"
        )
    windows = windows_of(memory.plan)
    if any(sliding_of(model)):
        raise ExportError(f"{base} has sliding windows of its own, and a config says one size")
    geometry = adapter_for(model.config).geometry(model.config)
    document = write_sliding(local_folder(base), model.config, geometry, windows, output)
    number, size = sum(map(bool, windows)), document["sliding_window"]
    sys.stdout.write(
        f"{output}: {document['model_type']}, {number} of {len(windows)} blocks with a sliding "
        f"window of {size}\n"
    )
    return {
        "output": str(output),
        "format": "sliding",
        "model_type": document["model_type"],
        "sliding_window": size,
        "layer_types": document["layer_types"],
    }


def windows_of(plan: MemoryPlan) -> Sequence[int | None]:
    """The window of every block, None where it keeps all; ExportError for a plan by head."""
    windows: list[int | None] = []
    for keeps in plan.blocks:
        own = {*keeps}
        if len(own) > 1 or any(keep != ALL and keep.choice != "slide" for keep in own):
            raise ExportError(
                "the memory plan decides head by head, which no config says; smash --kv-by block "
                "makes one by block"
            )
        windows.append(next((keep.window for keep in own if keep != ALL), None))
    return windows
