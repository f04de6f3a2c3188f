"""The command `export`: read a model, write it in the format of another engine."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig

from lightstride.checkpoint import is_headed, is_smashed
from lightstride.commands.export_head import export_head
from lightstride.commands.export_sliding import export_sliding
from lightstride.commands.outputs import only_writer
from lightstride.config import ExportConfig
from lightstride.errors import ExportError, OutputError
from lightstride.export.decilm import write_decilm
from lightstride.export.gguf.weights import FolderWeights
from lightstride.models.end_tokens import end_tokens
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.load import load_config, load_tokenizer, local_folder
from lightstride.models.opening.skeleton import check_shapes

HAS_GGUF = find_spec("gguf") is not None
if HAS_GGUF:
    from lightstride.export.gguf.write import GGUFFile, write_gguf


def export(config: ExportConfig) -> Mapping[str, object]:
    """Write the model; what was written, as printed by `--json`."""
    output = Path(config.output)
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent} is no folder")
    with only_writer(output):
        if output.exists():
            raise OutputError(f"{output} exists already; name another file")
        return export_alone(config, output)


def export_alone(config: ExportConfig, output: Path) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    if is_smashed(config.model, trust_remote_code=config.trust_remote_code):
        if config.to == "sliding":
            return export_sliding(config, output)
        raise ExportError(
            f"{config.model} is smashed, which no other engine runs; lightstride serve runs it"
        )
    if config.to == "sliding":
        raise ExportError(
            f"{config.model} has no memory plan to write; lightstride smash --kv 0.5 --kv-by block "
            "makes one"
        )
    if is_headed(config.model, trust_remote_code=config.trust_remote_code):
        return export_head(config, output)
    if config.to in ("eagle3", "speculators"):
        raise ExportError(
            f"{config.model} has no draft head to write as {config.to}; lightstride smash "
            "--from-head makes a model with one"
        )
    folder = local_folder(config.model)
    settings = load_config(config.model, str(folder), trust_remote_code=config.trust_remote_code)
    if config.to == "decilm":
        write_decilm(folder, settings, adapter_for(settings).geometry(settings), output)
        sys.stdout.write(f"{output}: a DeciLM checkpoint\n")
        return {"output": str(output), "format": "decilm"}
    written = export_gguf(folder, settings, output, config)
    for fallback in written.fallbacks:
        sys.stderr.write(f"rows do not divide into blocks of {config.dtype}; {fallback}\n")
    megabytes = written.num_bytes / 1e6
    sys.stdout.write(f"{output}: {written.architecture}, {config.dtype}, {megabytes:.1f} MB\n")
    return {
        "output": str(written.path),
        "format": "gguf",
        "architecture": written.architecture,
        "dtype": config.dtype,
        "bytes": written.num_bytes,
        "fallbacks": list(written.fallbacks),
    }


def export_gguf(
    folder: Path, settings: PreTrainedConfig, output: Path, config: ExportConfig
) -> "GGUFFile":
    """Write a checkpoint folder as a GGUF file."""
    if not HAS_GGUF:
        raise ExportError("writing a GGUF needs the package gguf; pip install gguf")
    weights = FolderWeights(folder)
    check_shapes(str(folder), settings, weights.shapes)
    return write_gguf(
        weights,
        settings,
        adapter_for(settings).geometry(settings),
        load_tokenizer(str(folder), trust_remote_code=config.trust_remote_code),
        output,
        dtype=config.dtype,
        name=Path(config.model).name,
        end_tokens=folder_end_tokens(folder, settings),
        progress=sys.stderr.isatty(),
    )


def folder_end_tokens(folder: Path, config: PreTrainedConfig) -> tuple[int, ...]:
    """All tokens that end an answer, by the generation settings or else by the config."""
    found: tuple[int, ...] = ()
    if (folder / "generation_config.json").is_file():
        with errors_explained(str(folder), "generation_config.json"):
            found = end_tokens(GenerationConfig.from_pretrained(folder))
    return found or end_tokens(config)
