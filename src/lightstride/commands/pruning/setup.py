"""Everything a pruning run is made of, checked before the first long stage."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.commands.outputs import identity
from lightstride.commands.pruning.count import check_shares, count_run, way_of
from lightstride.commands.pruning.options import cost_of, rounds_of, serving_of, target_of
from lightstride.commands.pruning.texts import Texts, read_texts
from lightstride.config import PruneConfig
from lightstride.config.values import parse_size
from lightstride.data.sampled import sample_documents
from lightstride.distributed import broadcast_object, rank
from lightstride.errors import ConfigError, OutputError, WorkError
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.adapter import Adapter
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.shapes import Geometry, parse_shape, shape_text
from lightstride.prune.devices import move_if_it_fits
from lightstride.prune.footprint import disk_bytes
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.space.budget import CostFunction, dense_cost, table_cost
from lightstride.prune.space.latency import latency_table
from lightstride.prune.space.plan import Plan
from lightstride.prune.space.targets import Target
from lightstride.prune.ways import Way
from lightstride.search.result import ProgressFor, no_progress
from lightstride.work import open_work

Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


@dataclass(frozen=True)
class PruneRun:
    """A run that can start."""

    config: PruneConfig
    source: WeightSource
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    texts: Texts
    runner: RoundRunner

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.source.model

    @property
    def geometry(self) -> Geometry:
        """Sizes of the dense model."""
        return self.runner.space.geometry


def open_run(config: PruneConfig, progress_for: ProgressFor[Plan] = no_progress) -> PruneRun:
    """Open and check all that a run needs; the work folder is ready afterwards."""
    way = way_of(count_run(config))
    source = open_source(config, way)
    model, adapter, geometry = source.model, source.adapter, source.geometry
    tokenizer = load_tokenizer(config.model)
    target = target_of(config, geometry)
    cost = cost_of(config, geometry)
    space = check_shares(config, geometry, target, cost)
    texts = read_texts(
        config,
        tokenizer,
        lambda num_tokens, seed: sample_documents(model, tokenizer, num_tokens, seed),
        getattr(model.config, "max_position_embeddings", None),
    )
    settings = rounds_of(config)
    if settings.search is not None:
        settings.fitness.check_room(settings.largest_sample(texts.search.num_tokens, space))
    work = Path(config.work_folder)
    owner = {**identity(config), "weights": source.identity(), "texts": texts.hashes}
    open_work(work, owner, resume=config.resume)
    if config.budget == "latency":
        cost = timed_sites(config, geometry, target, source)
        space = check_shares(config, geometry, target, cost)
    runner = RoundRunner(
        source=source,
        space=space,
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=texts.calibration.tokens_NL,
        search_NL=texts.search.tokens_NL,
        work=work,
        settings=settings,
        spill=way == "spilled",
        progress=True,
        progress_for=progress_for,
    )
    check_disk(config, runner)
    return PruneRun(config, source, tokenizer, adapter, texts, runner)


def open_source(config: PruneConfig, way: Way) -> WeightSource:
    """The dense model, in memory or read block by block."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    trusted = config.trust_remote_code
    if way != "resident":
        return open_streamed(config.model, dtype=dtype, device=device, trust_remote_code=trusted)
    model = load_model(config.model, dtype=dtype, device="cpu", trust_remote_code=trusted)
    limit = None
    if config.device_memory is not None:
        limit = parse_size("--device-memory", config.device_memory)
    move_if_it_fits(model, device, limit)
    if config.heal and model.device.type != device:
        raise ConfigError(
            f"--heal trains the whole model on one device, and it does not fit on {device}; "
            "leave --heal out"
        )
    return Resident(model, device)


def timed_sites(
    config: PruneConfig, geometry: Geometry, target: Target, source: WeightSource
) -> CostFunction:
    """The cost in measured time; timed once a run, and the same on all ranks."""
    path = Path(config.work_folder) / "latency.json"
    if rank() == 0 and not path.exists():
        shapes = [shape for shapes in target.admissible(geometry).values() for shape in shapes]
        table = latency_table(
            geometry, shapes, serving_of(config), dtype=source.model.dtype, device=source.device
        )
        write_sealed(path, {shape_text(shape): time for shape, time in table.items()})
    try:
        found = read_sealed(path, dict[str, Nanoseconds], WorkError) if rank() == 0 else {}
        times = broadcast_object(found)
        table = {parse_shape(name): time for name, time in times.items()}
    except (ValueError, WorkError) as error:
        raise WorkError(f"{path} is damaged: delete it ({error})") from error
    wanted = {shape for shapes in target.admissible(geometry).values() for shape in shapes}
    if not wanted <= set(table):
        raise WorkError(f"{path} is damaged: delete it (shapes are missing)")
    return table_cost(table)


def check_disk(config: PruneConfig, runner: RoundRunner) -> None:
    """OutputError where a supernet and the checkpoints do not fit on the disk."""
    needed = disk_bytes(runner, config.sparsity, config.heal)
    free = shutil.disk_usage(existing(Path(config.work_folder))).free
    if needed > free:
        raise OutputError(
            f"about {needed >> 20:,} MiB of disk are needed for {config.work_folder} and "
            f"{config.output}; {free >> 20:,} MiB are free"
        )


def existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
