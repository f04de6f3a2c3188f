"""A pruning run without weights: its settings, space and amounts of text, to be asked for sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.commands.pruning.options import cost_of, rounds_of, target_of
from lightstride.config import PruneConfig
from lightstride.config.values import parse_size, size_text
from lightstride.data.windows import windows_in
from lightstride.errors import ConfigError
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.skeleton import load_skeleton
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import Geometry
from lightstride.prune.devices import device_bytes
from lightstride.prune.forecast import Operations, forecast
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.space.budget import CostFunction, build_space, dense_cost
from lightstride.prune.space.narrow import limit_for
from lightstride.prune.space.plan import Space
from lightstride.prune.space.targets import Target
from lightstride.prune.ways import WAYS, Room, Way, choose_way, fits


@dataclass(frozen=True)
class DryRun:
    """A run that could start if there were weights."""

    config: PruneConfig
    runner: RoundRunner
    """Its model and its texts are meta tensors."""
    stages: Mapping[str, Operations]
    held_out_tokens: int


def count_run(config: PruneConfig) -> DryRun:
    """A run's operations, from config.json and nothing else."""
    dtype = pick_dtype(config.dtype, suitable_dtype(pick_device(config.device)))
    model = load_skeleton(config.model, dtype=dtype, trust_remote_code=config.trust_remote_code)
    calibration_NL, search_NL, held_out_NL = amounts(config)
    runner = runner_of(config, model, calibration_NL, search_NL)
    stages = forecast(runner, config.sparsity, config.heal, held_out_NL.numel())
    return DryRun(config, runner, stages, held_out_NL.numel())


def runner_of(
    config: PruneConfig, model: PreTrainedModel, calibration_NL: Tensor, search_NL: Tensor
) -> RoundRunner:
    """The runner of a run, to be asked and not to be run; BudgetError, ConfigError as a run's."""
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    cost = cost_of(config, geometry)
    space = check_shares(config, geometry, target_of(config, geometry), cost)
    settings = rounds_of(config)
    if settings.search is not None:
        settings.fitness.check_room(settings.largest_sample(search_NL.numel(), space))
    return RoundRunner(
        source=Resident(model),
        space=space,
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=calibration_NL,
        search_NL=search_NL,
        work=Path(config.work_folder),
        settings=settings,
    )


def amounts(config: PruneConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Windows for calibration, search and held-out text, without values."""
    assert config.window is not None
    assert config.calibration_tokens is not None
    assert config.search_tokens is not None
    assert config.held_out_tokens is not None
    counts = (config.calibration_tokens, config.search_tokens, config.held_out_tokens)
    calibration, search, held_out = (
        torch.empty(windows_in(count, config.window), config.window, device="meta")
        for count in counts
    )
    return calibration, search, held_out


def check_shares(
    config: PruneConfig, geometry: Geometry, target: Target, cost: CostFunction
) -> Space:
    """The space of a run; BudgetError if one of its sparsities cannot be reached."""
    space = build_space(geometry, target, cost)
    for share in config.sparsity:
        limit_for(share, dense_cost(geometry, cost), space)
    return space


def limited(config: PruneConfig, room: Room) -> Room:
    """A machine's room, as far as the flags allow it."""
    memory, device_memory = room.memory, room.device_memory
    if config.memory is not None:
        memory = parse_size("--memory", config.memory)
    if config.device_memory is not None and room.devices:
        device_memory = min(device_memory, parse_size("--device-memory", config.device_memory))
    return Room(memory, device_memory, room.devices)


def room_here(config: PruneConfig) -> Room:
    """This machine's room: all of its memory, and that of its accelerators if one is used."""
    device = pick_device(config.device)
    total = psutil.virtual_memory().total
    if device == "cpu":
        if config.device_memory is not None:
            raise ConfigError(
                f"--device-memory {config.device_memory} is for an accelerator; there is none here"
            )
        return Room(total)
    return Room(total, device_bytes(device), torch.accelerator.device_count())


def resident_reason(config: PruneConfig) -> str | None:
    """The flags that need the whole model in memory, or None."""
    if config.heal:
        return "--heal"
    sources = (config.calibration, config.search_text, config.held_out)
    return "text of the model's own (self)" if "self" in sources else None


def way_of(run: DryRun) -> Way:
    """How this run is made here; ConfigError where a limit that was given is too low."""
    config = run.config
    room = limited(config, room_here(config))
    reason = resident_reason(config)
    ways: tuple[Way, ...] = WAYS if reason is None else WAYS[:1]
    way, size = choose_way(
        run.runner, config.sparsity, config.heal, room, run.held_out_tokens, ways
    )
    if fits(size, room) or (config.memory is None and config.device_memory is None):
        return way
    needs = f"; {reason} needs the whole model in memory" if reason else ""
    most = max(size.memory.values())
    if room.memory is not None and most > room.memory:
        raise ConfigError(
            f"--memory {config.memory or size_text(room.memory)} is too little for this run: the "
            f"least that works is {size_text(most)}{needs}"
        )
    least = size_text(max(size.device_memory.values()))
    raise ConfigError(
        f"--device-memory {config.device_memory} is too little for this run: the least that works "
        f"is {least}{needs}"
    )
