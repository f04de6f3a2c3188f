"""A pruning run in memory and read block by block, each in a process of its own, side by side.

Used by `scaling.py --ways SHAPE`.  `135M` is SmolLM2-135M itself; the others are random weights of
real shapes, generated tensor by tensor, so that nothing larger than a tensor is in memory.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lightstride.commands.pruning.count import count_run
from lightstride.config import PruneConfig
from lightstride.models.opening.load import local_folder
from lightstride.models.opening.shards import Shards
from lightstride.models.opening.skeleton import skeleton
from lightstride.models.saving import (
    SHARD_INDEX,
    Entry,
    numbered,
    split_entries,
    write_index,
    write_shard,
)
from lightstride.prune.ways import Room, Way, footprint_of
from random_llama import Sizes, llama_config

BUILT_IN = "smollm2-135m"
SHAPES: Mapping[str, tuple[Sizes, int, bool]] = {
    "tiny": ((12, 64, 4, 2, 256), 49_152, True),
    "76M": ((12, 640, 10, 2, 1792), 49_152, True),
    "360M": ((32, 960, 15, 5, 2560), 49_152, True),
    "1B": ((16, 2048, 32, 8, 8192), 128_256, True),
    "3B": ((28, 3072, 24, 8, 8192), 128_256, True),
    "8B": ((32, 4096, 32, 8, 14_336), 128_256, False),
}
"""Sizes, vocabulary, and whether the head is tied."""
SHARD = 1 << 30
SEED = 0
FLAGS: Mapping[str, object] = {
    "sparsity": (0.5,),
    "preset": "fast",
    "calibration_tokens": 4096,
    "search_tokens": 8192,
    "held_out_tokens": 2048,
    "window": 512,
    "rounds": 1,
    "generations": 1,
    "offspring": 12,
    "dtype": "bfloat16",
}


def make_model(shape: str, folder: Path) -> Path:
    """A folder with random weights of a shape, written tensor by tensor; kept if it is there."""
    if folder.exists():
        return folder
    sizes, vocabulary, tied = SHAPES[shape]
    config = llama_config(sizes, vocabulary, tied=tied)
    config.max_position_embeddings = 8192
    config.dtype = "bfloat16"
    config.architectures = ["LlamaForCausalLM"]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in local_folder(BUILT_IN).iterdir():
        if path.suffix in (".json", ".jinja") and "config" not in path.name.replace("_config", ""):
            shutil.copyfile(path, partial / path.name)
    (partial / "generation_config.json").unlink(missing_ok=True)
    config.save_pretrained(partial)
    model = skeleton(config, torch.bfloat16)
    entries = [Entry(name, each.shape, each.dtype) for name, each in model.named_parameters()]
    shards = split_entries(entries, SHARD)
    tensors = random_tensors(entries, config.hidden_size)
    names = numbered(len(shards))
    for name, some in zip(names, shards, strict=True):
        write_shard(partial / name, some, tensors)
    write_index(partial / SHARD_INDEX, dict(zip(names, shards, strict=True)))
    partial.rename(folder)
    return folder


def random_tensors(entries: Sequence[Entry], hidden: int) -> Iterator[Tensor]:
    """Weights as at the beginning of a training: norms one, all else small."""
    generator = torch.Generator().manual_seed(SEED)
    for entry in entries:
        if len(entry.shape) == 1:
            yield torch.ones(entry.shape, dtype=entry.dtype)
        else:
            values = torch.empty(entry.shape, dtype=entry.dtype)
            yield values.normal_(0, hidden**-0.5, generator=generator)


def settings(model: str, output: Path, changes: Mapping[str, object]) -> PruneConfig:
    """The run that is made in every way."""
    return PruneConfig(**{**FLAGS, **changes}, model=model, output=str(output))  # type: ignore[arg-type]


def foreseen(config: PruneConfig, way: Way) -> dict[str, int]:
    """What the forecast says of the memory of each stage."""
    run = count_run(config.resolved())
    return footprint_of(way, run.runner, config.sparsity, 0, Room(), run.held_out_tokens).memory


def words_of(config: PruneConfig) -> list[str]:
    """The command line of a run."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in config.as_dict().items()
        if name in {*FLAGS, "search"} - {"sparsity"} and value is not None
    ]
    shares = [f"{share:g}" for share in config.sparsity]
    memory = [] if config.memory is None else [f"--memory={config.memory}"]
    return ["prune", config.model, "-o", config.output, "--sparsity", *shares, *flags, *memory]


def run_alone(config: PruneConfig, log: Path) -> dict[str, object]:
    """Make a run in a process of its own; its times and the peak of its memory."""
    start = time.perf_counter()
    with log.open("w") as told:
        child = psutil.Popen(
            [sys.executable, "-m", "lightstride", *words_of(config)], stdout=told, stderr=told
        )
        seen = watched(child)
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode}:\n{log.read_text()[-2000:]}")
    return {"seconds": round(time.perf_counter() - start, 1), **seen}


def watched(child: psutil.Popen) -> dict[str, object]:
    """Processor time and peak memory of a process, looked at until it ends.

    Not what the system says afterwards: that counts the memory of whoever started the process.
    """
    peak, times = 0, None
    while child.poll() is None:
        with suppress(psutil.Error, OSError, StopIteration):
            text = Path(f"/proc/{child.pid}/status").read_text()
            line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
            peak = max(peak, 1024 * int(line.split()[1]))
            times = child.cpu_times()
        time.sleep(0.1)
    assert times is not None
    return {"cpu_seconds": round(times.user + times.system, 1), "peak_bytes": peak}


def weights_hash(folder: Path) -> str:
    """Hash of all tensors of a checkpoint, by name."""
    shards, digest = Shards.open(folder), hashlib.sha256()
    for name in sorted(shards.places):
        tensor = shards.read(name)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compare(
    shape: str, ways: Sequence[Way], memory: str | None, folder: Path, changes: Mapping[str, object]
) -> dict[str, object]:
    """One row: a run in each of these ways, what was foreseen, and whether they found the same."""
    model = BUILT_IN if shape == "135M" else str(make_model(shape, folder / f"model-{shape}"))
    row: dict[str, object] = {"shape": shape, "ways": {}}
    plans, weights = set(), set()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for way in ways:
            output = Path(work) / way
            stages = foreseen(settings(model, output, changes), way)
            given = None
            if way != "resident":
                given = memory or f"{max(stages.values())}B"
            config = settings(model, output, {**changes, "memory": given})
            measured = run_alone(config, folder / f"{shape}-{way}.log")
            plan = json.loads((output / "lightstride.json").read_text())["plan"]
            plans.add(json.dumps(plan, sort_keys=True))
            weights.add(weights_hash(output))
            measured |= {"memory": given, "foreseen": stages}
            row["ways"][way] = measured  # type: ignore[index]
            print(shape, way, measured, file=sys.stderr)
            shutil.rmtree(output)
            shutil.rmtree(f"{output}.work", ignore_errors=True)
    return row | {"same_plan": len(plans) == 1, "same_weights": len(weights) == 1}
