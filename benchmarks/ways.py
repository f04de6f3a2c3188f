"""A pruning run in memory and read block by block, each in a process of its own, side by side.

Used by `scaling.py --ways SHAPE`.  `135M` is SmolLM2-135M itself; the others are random weights of
real shapes, generated tensor by tensor, so that nothing larger than a tensor is in memory.

Before each run `prune --dry-run`'s own code says what it will cost on this machine; that stands
beside what it did cost, with the ratio of the two: time by stage, memory and disk at their peak.
"""

import hashlib
import json
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lightstride.commands.outputs import RESULT
from lightstride.commands.pruning.count import count_run
from lightstride.commands.pruning.dry_run import on_machine
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
from lightstride.results import read_result
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


def least_memory(config: PruneConfig, way: Way) -> str:
    """The `--memory` that a run needs in one of the ways."""
    run = count_run(config.resolved())
    size = footprint_of(way, run.runner, config.sparsity, 0, Room(), run.held_out_tokens)
    return f"{max(size.memory.values())}B"


def foreseen(config: PruneConfig) -> dict[str, object]:
    """What `--dry-run` says of a run on this machine."""
    found = on_machine(count_run(config.resolved()), "here")
    return {
        "way": found.way,
        "seconds": found.seconds,
        "memory": found.footprint.memory,
        "disk": found.footprint.disk,
        "rates": vars(found.rates),
    }


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
    """Make a run in a process of its own; its times, and the peaks of its memory and disk."""
    start = time.perf_counter()
    with log.open("w") as told:
        child = psutil.Popen(
            [sys.executable, "-m", "lightstride", *words_of(config)], stdout=told, stderr=told
        )
        seen = watched(child, [Path(config.output), Path(config.work_folder)])
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode}:\n{log.read_text()[-2000:]}")
    seconds = round(time.perf_counter() - start, 1)
    stages = read_result(Path(config.output) / RESULT)["numbers"]["stages"]
    return {"seconds": seconds, **seen, "stages": stages}


def watched(child: psutil.Popen, folders: Sequence[Path]) -> dict[str, object]:
    """Processor time, peak memory and peak disk of a process, looked at until it ends.

    Not what the system says afterwards: that counts the memory of whoever started the process.
    """
    peak, disk, times = 0, 0, None
    while child.poll() is None:
        with suppress(psutil.Error, OSError, StopIteration):
            text = Path(f"/proc/{child.pid}/status").read_text()
            line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
            peak = max(peak, 1024 * int(line.split()[1]))
            times = child.cpu_times()
        disk = max(disk, disk_of(child.pid, folders))
        time.sleep(0.1)
    assert times is not None
    used = round(times.user + times.system, 1)
    return {"cpu_seconds": used, "peak_bytes": peak, "disk_bytes": disk}


def disk_of(process: int, folders: Sequence[Path]) -> int:
    """Bytes of all files in these folders, and of files without a name that a process has open."""
    named = [path for folder in folders for path in folder.rglob("*")]
    total = 0
    for path in [*named, *Path(f"/proc/{process}/fd").glob("*")]:
        with suppress(OSError):
            found = path.stat()
            nameless = found.st_nlink == 0
            if stat.S_ISREG(found.st_mode) and nameless == (path.parent.name == "fd"):
                total += found.st_size
    return total


def ratios(measured: Mapping[str, object], said: Mapping[str, object]) -> dict[str, object]:
    """Measured over foreseen: every stage and their sum, memory and disk.

    Time by the clock, and of the processor for each thread: the first counts what else ran here.
    """
    seconds: Mapping[str, float] = said["seconds"]  # type: ignore[assignment]
    memory: Mapping[str, int] = said["memory"]  # type: ignore[assignment]
    spent: Mapping[str, Mapping[str, float]] = measured["stages"]  # type: ignore[assignment]
    clocks = {"clock": ("seconds", 1), "processor": ("processor_seconds", torch.get_num_threads())}
    found: dict[str, object] = {
        "memory": int(str(measured["peak_bytes"])) / max(memory.values()),
        "disk": int(str(measured["disk_bytes"])) / int(str(said["disk"])),
    }
    for clock, (key, threads) in clocks.items():
        stages = {name: spent[name][key] / threads for name, told in seconds.items() if told}
        parts = {name: value / seconds[name] for name, value in stages.items()}
        found[clock] = {**parts, "all": sum(stages.values()) / sum(seconds.values())}
    return found


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
    measured: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for way in ways:
            output = Path(work) / way
            given = None
            if way != "resident":
                given = memory or least_memory(settings(model, output, changes), way)
            config = settings(model, output, {**changes, "memory": given})
            said = foreseen(config)
            found = run_alone(config, folder / f"{shape}-{way}.log")
            plan = json.loads((output / "lightstride.json").read_text())["plan"]
            measured[way] = found | {
                "memory": given,
                "foreseen": said,
                "ratio": ratios(found, said),
                "plan_sha256": hashlib.sha256(
                    json.dumps(plan, sort_keys=True).encode()
                ).hexdigest(),
                "weights_sha256": weights_hash(output),
            }
            print(shape, way, measured[way], file=sys.stderr)
            shutil.rmtree(output)
            shutil.rmtree(f"{output}.work", ignore_errors=True)
    row = {"shape": shape, "ways": measured}
    if len(ways) == 1:
        return row
    return row | {
        f"same_{part}": len({str(found[f"{part}_sha256"]) for found in measured.values()}) == 1
        for part in ("plan", "weights")
    }
