"""What `lightstride doctor` does: one screen to paste into a bug report.

Versions, optional parts present or how to get them, devices, rates measured now, the cache, and
for a model the hashes by which results and checkpoints name it.
"""

import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lightstride.bench.machine import measure_machine
from lightstride.checkpoint import is_headed, is_smashed
from lightstride.config import DoctorConfig
from lightstride.errors import ModelError
from lightstride.files import cache_folder
from lightstride.files.read import file_digest
from lightstride.models.device import pick_device
from lightstride.models.fingerprint import fingerprint, model_hash
from lightstride.models.opening.builtin import BUILT_IN, gguf_source
from lightstride.models.opening.conversions import copies, limit_bytes, older
from lightstride.models.opening.load import load_model, local_folder, locate
from lightstride.results import hardware, versions
from lightstride.smash.decode.costs import cost_lines, costs_of
from lightstride.smash.model.graft_files import read_config
from lightstride.smash.model.headed import HEAD, read_headed

EXTRAS = {
    "data": ("datasets", "pyarrow"),
    "demo": ("gguf",),
    "eval": ("lm_eval",),
    "gguf": ("gguf", "xllamacpp"),
    "report": ("matplotlib",),
    "serve": ("fastapi", "uvicorn"),
}
"""Modules that each extra of the package brings."""


def doctor(config: DoctorConfig) -> Mapping[str, object]:
    """Print the screen; the same as a document."""
    device = torch.device(pick_device(config.device))
    found: dict[str, object] = {
        "versions": versions(),
        "hardware": hardware(),
        "extras": {extra: missing(modules) for extra, modules in EXTRAS.items()},
        "built_in": {name: how_to_get(name) for name in BUILT_IN},
        "devices": devices(),
        "rates": {"device": str(device), "threads": torch.get_num_threads(), **rates(device)},
        "cache": kept(),
    }
    if config.model is not None:
        found["model"] = hashes(config.model, config.trust_remote_code)
    sys.stdout.write(screen(found))
    return found


def missing(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if find_spec(module) is None]


def how_to_get(name: str) -> str:
    """Empty if a built-in model is installed, else what installs it."""
    try:
        gguf_source(name)
    except ModelError:
        return BUILT_IN[name].install
    return ""


def devices() -> list[str]:
    """What torch can compute on, the processor first."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{accelerator.type}:{number}" for number in range(count))]


def rates(device: torch.device) -> dict[str, float]:
    """Bytes read a second, and operations of matrix products a second in two precisions."""
    single = measure_machine(device, torch.float32)
    half = measure_machine(device, torch.bfloat16)
    return {
        "bandwidth": max(single.bandwidth, half.bandwidth),
        "float32": single.matrix_rate,
        "bfloat16": half.matrix_rate,
    }


def kept() -> dict[str, object]:
    """Where converted copies are, how many, and what they take."""
    found = [*copies(), *older()]
    return {
        "folder": str(cache_folder()),
        "copies": len(found),
        "bytes": sum(copy.num_bytes for copy in found),
        "limit_bytes": limit_bytes(),
    }


def hashes(source: str, trust_remote_code: bool) -> dict[str, object]:
    """The names by which a model's weights, config and grafts are known."""
    grafts: dict[str, str] = {}
    base = source
    if is_smashed(source):
        base = read_config(source).base
        folder = Path(locate(source))
        grafts = {
            path.name: file_digest(path, ModelError)
            for path in sorted(folder.glob("*.safetensors"))
        }
    if is_headed(source):
        folder = local_folder(source)
        base = read_headed(folder).base
        grafts = {
            path.name: file_digest(path, ModelError)
            for path in sorted((folder / HEAD).glob("*.safe*"))
        }
    model = load_model(base, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    return {
        "source": source,
        "base": base,
        "type": model.config.model_type,
        "parameters": sum(each.numel() for each in model.parameters()),
        "weights": fingerprint(model),
        "identity": model_hash(model),
        "grafts": grafts,
        "costs": costs_of(model).complete().as_dict(),
    }


def screen(found: Mapping[str, object]) -> str:
    """The document as lines of a title and what is to be said, for a person."""
    return "".join(f"{title:<10} {text}\n" for title, text in lines(found))


def lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Titles and texts of the screen."""
    yield "versions", " · ".join(f"{name} {number}" for name, number in found["versions"].items())
    machine, measured, cache = found["hardware"], found["rates"], found["cache"]
    memory = machine["memory_bytes"] / 2**30
    yield "machine", f"{machine['cpu']}, {machine['cores']} cores, {memory:.1f} GiB, {system()}"
    yield "devices", ", ".join([*found["devices"], *machine["gpus"]])
    yield (
        "rates",
        f"{measured['device']}, {measured['threads']} threads: reads"
        f" {measured['bandwidth'] / 1e9:.1f} GB/s, products {measured['float32'] / 1e9:,.0f}"
        f" (float32) and {measured['bfloat16'] / 1e9:,.0f} GFLOP/s (bfloat16)",
    )
    for extra, absent in found["extras"].items():
        how = f"lacks {', '.join(absent)}: pip install 'lightstride[{extra}]'"
        yield f"[{extra}]", how if absent else "installed"
    for name, install in found["built_in"].items():
        yield "built in", f"{name}: {install or 'installed'}"
    yield (
        "cache",
        f"{cache['copies']} copies, {cache['bytes'] / 1e9:.2f} of"
        f" {cache['limit_bytes'] / 1e9:g} GB, in {cache['folder']}",
    )
    if "model" in found:
        model = found["model"]
        yield "model", f"{model['source']}: {model['type']}, {model['parameters']:,} parameters"
        yield "weights", f"{model['weights']} (with the config {model['identity'][:16]})"
        for line in cost_lines({int(rows): points for rows, points in model["costs"].items()}):
            yield "forward", line
        for name, digest in model["grafts"].items():
            yield "grafts", f"{digest[:16]} ({name}), on {model['base']}"


def system() -> str:
    """The operating system, in short."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"
