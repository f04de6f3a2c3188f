"""`lightstride prune --dry-run`: time, memory, disk and reads of a run that is not made.

Everything is counted from config.json; the run's own checks are made, its texts are read, and
nothing is written.  Of text that the model would have to say itself only the amount counts, and
the time to say it does not.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lightstride.bench.machine import free_memory
from lightstride.commands.outputs import check_output
from lightstride.commands.pruning.count import (
    DryRun,
    count_run,
    limited,
    resident_reason,
    room_here,
)
from lightstride.commands.pruning.setup import existing
from lightstride.commands.pruning.texts import read_texts
from lightstride.config import PruneConfig
from lightstride.config.prune import MachineName
from lightstride.errors import ConfigError
from lightstride.models.device import pick_device
from lightstride.models.opening.load import load_tokenizer
from lightstride.models.opening.skeleton import one_block
from lightstride.prune.devices import device_bytes
from lightstride.prune.footprint import Footprint
from lightstride.prune.forecast import Rates, measure_rates
from lightstride.prune.machines import known_machine
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.ways import WAYS, Room, Way, choose_way
from lightstride.results import markdown_table
from lightstride.work import check_work

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run costs on one machine."""

    machine: str
    title: str
    assumed: str
    """Where the rates come from."""
    rates: Rates
    seconds: dict[str, float]
    """By stage."""
    way: Way
    """Where the weights lie: the first way that there is room for."""
    footprint: Footprint
    free: dict[str, int | None]
    """Bytes of memory, of each accelerator's memory and of disk; None where that is not known."""

    @property
    def too_little(self) -> list[str]:
        """Of what there is less than the run needs."""
        needed = {
            "memory": max(self.footprint.memory.values()),
            "device memory": max(self.footprint.device_memory.values(), default=0),
            "disk": self.footprint.disk,
        }
        there = {name: free for name, free in self.free.items() if free is not None}
        return [name for name, size in needed.items() if size > there.get(name, size)]

    def to_json(self) -> dict[str, object]:
        """The same for `--json`."""
        total = sum(self.seconds.values())
        return {**asdict(self), "total_seconds": total, "too_little": self.too_little}


def dry_run(config: PruneConfig) -> Mapping[str, object]:
    """Print what a run would cost on each machine; the same as a document."""
    check_output(config)
    check_work(Path(config.work_folder), resume=config.resume)
    run = plan_run(config)
    names: tuple[MachineName, ...] = config.machine or ("here",)
    found = [on_machine(run, name) for name in names]
    sys.stdout.write(text_of(found) + "\n")
    return {
        "kind": "prune dry run",
        "config": config.as_dict(),
        "operations": {stage: asdict(each) for stage, each in run.stages.items()},
        "machines": [each.to_json() for each in found],
    }


def plan_run(config: PruneConfig) -> DryRun:
    """Open and check all that a run needs but its weights, as `open_run` does."""
    run = count_run(config)
    check_texts(config, run.runner.model)
    return run


def check_texts(config: PruneConfig, model: PreTrainedModel) -> None:
    """DataError as a run's; texts that the model itself would say are not made."""
    sources = (config.calibration, config.search_text, config.held_out)
    tokenizer = load_tokenizer(config.model)
    if "self" not in sources:
        longest = getattr(model.config, "max_position_embeddings", None)
        read_texts(config, tokenizer, lambda *_: (), longest)


def on_machine(run: DryRun, name: MachineName) -> Forecast:
    """What the run costs on a machine."""
    if name == "here":
        return on_this_machine(run)
    known, config = known_machine(name), run.config
    room = limited(config, Room(known.memory, known.device_memory, known.devices))
    way, size = way_and_size(run, room)
    seconds = {stage: each.seconds(known.rates) for stage, each in run.stages.items()}
    return Forecast(
        machine=name,
        title=known.title,
        assumed=known.assumed,
        rates=known.rates,
        seconds=seconds | {"reading": size.reads / known.disk},
        way=way,
        footprint=size,
        free={
            "memory": room.memory,
            "device memory": room.device_memory if room.devices else None,
            "disk": None,
        },
    )


def on_this_machine(run: DryRun) -> Forecast:
    """What the run costs here, by rates measured on one block of random weights."""
    config, runner = run.config, run.runner
    device = pick_device(config.device)
    on_device = device != "cpu"
    check_block(runner, device)
    block = one_block(
        runner.model.config,
        runner.model.dtype,
        device,
        trust_remote_code=config.trust_remote_code,
    )
    tokens_BL = torch.zeros_like(
        runner.calibration_NL[: runner.settings.batch_size], dtype=torch.int64, device="cpu"
    )
    rates = measure_rates(block, runner.adapter, tokens_BL)
    room = limited(config, room_here(config))
    way, size = way_and_size(run, room)
    free = free_memory() if config.memory is None else room.memory
    return Forecast(
        machine="here",
        title="this machine",
        assumed="rates are measured, on one block of random weights",
        rates=rates,
        seconds={stage: each.seconds(rates) for stage, each in run.stages.items()},
        way=way,
        footprint=size,
        free={
            "memory": free,
            "device memory": room.device_memory if on_device else None,
            "disk": shutil.disk_usage(existing(Path(config.work_folder))).free,
        },
    )


def way_and_size(run: DryRun, room: Room) -> tuple[Way, Footprint]:
    """The first way that there is room for, and what it takes."""
    config = run.config
    ways = WAYS if resident_reason(config) is None else WAYS[:1]
    return choose_way(run.runner, config.sparsity, config.heal, room, run.held_out_tokens, ways)


def check_block(runner: RoundRunner, device: str) -> None:
    """ConfigError where not even one block fits, so that nothing can be measured."""
    geometry = runner.space.geometry
    sites = geometry.sites[:2]
    needed = runner.model.dtype.itemsize * sum(
        geometry.parameters(geometry.shape(s)) for s in sites
    )
    there = device_bytes(device) if device != "cpu" else free_memory()
    if there is not None and 2 * needed > there:
        raise ConfigError(
            f"one block takes {needed >> 20:,} MiB, and {there >> 20:,} MiB are free: its rates "
            "cannot be measured here; name another --machine"
        )


def text_of(found: Sequence[Forecast]) -> str:
    """A Markdown table of all machines, and a line on each of them."""
    rows, notes = [], []
    for each in found:
        size = each.footprint
        device = max(size.device_memory.values(), default=0)
        rows.append(
            [
                each.machine,
                each.way,
                seconds_text(sum(each.seconds.values())),
                ", ".join(f"{k} {seconds_text(v)}" for k, v in each.seconds.items() if v),
                f"{max(size.memory.values()) / GB:,.2f}",
                f"{device / GB:,.2f}" if device else "none",
                f"{size.disk / GB:,.2f}",
                f"{size.reads / GB:,.2f}",
            ]
        )
        short = f"; too little {' and '.join(each.too_little)}" if each.too_little else ""
        notes.append(f"{each.machine}: {each.title}; {each.assumed}{short}")
    header = ["machine", "model", "time", "by stage", "memory, GB", "device memory, GB", "disk, GB"]
    return "\n".join([markdown_table([*header, "reads, GB"], rows), *notes])


def seconds_text(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
