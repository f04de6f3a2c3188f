"""Three ways to run, and the least of them that a machine has room for.

    resident   the whole model in memory, on the host or on accelerators
    streamed   blocks are read when they are needed; activations of all windows in memory
    spilled    the same, with activations in files of the work folder

Resident is the fastest, and all three find the same plan and weights.  What the streamed ways
hold at once, beside the program:

    statistics   two blocks; the streams unless they are spilled; as resident while a site is solved
    search       the answers and the cut weights of one block; the candidates' hidden states unless
                 they are spilled; two blocks, or embedding or head with some logits
    saving       two blocks, one of them with its output weights in fp32, or embedding or head

Shapes in the formulas: as in `footprint.py`; E bytes of the embedding or the head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lightstride.models.shapes import KINDS, Geometry, Shape, Site
from lightstride.prune.footprint import (
    LOGIT_COPIES,
    PROGRAM_BYTES,
    Footprint,
    disk_bytes,
    footprint,
    read_bytes_of,
    site_bytes,
    stream_bytes,
    tried_share,
)
from lightstride.prune.forecast import planned_searches
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.space.plan import Space
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSettings

Way = Literal["resident", "streamed", "spilled"]
WAYS: tuple[Way, ...] = ("resident", "streamed", "spilled")
FEW_PLANS = 12
"""Of the search over plans with the same widths in every block."""
FINAL_PLANS = 3


@dataclass(frozen=True)
class Room:
    """Bytes of a machine: of the host, of each accelerator and of how many; None is unlimited."""

    memory: int | None = None
    device_memory: int = 0
    devices: int = 0


@dataclass(frozen=True)
class Pass:
    """One sweep over the weights: so many candidates on so many tokens, and how often."""

    candidates: int
    tokens: int
    times: int


def passes_of(search: GuidedSettings | EvolutionSettings, space: Space, tokens: int) -> list[Pass]:
    """The sweeps of one search, at most."""
    if space.uniform:
        return [Pass(FEW_PLANS, -(-tokens // 8), 1), Pass(FINAL_PLANS, tokens, 1)]
    times = search.generations
    counts = (search.offspring, *search.survivors[:-1])
    stages = [Pass(c + 1, t, times) for c, t in zip(counts, search.tokens, strict=True)]
    if isinstance(search, EvolutionSettings):
        return stages
    start = [Pass(1, count, 1) for count in search.tokens]
    return [*start, Pass(len(space.sites) + 1, search.probe_tokens, 1), *stages]


def searched_passes(runner: RoundRunner, shares: Sequence[float]) -> Iterator[Pass]:
    """The sweeps of all searches of a run."""
    search = runner.settings.search
    for _, spaces in planned_searches(runner, shares):
        for space in spaces.values():
            assert search is not None
            yield from passes_of(search, space, runner.search_NL.numel())


def block_bytes(geometry: Geometry, itemsize: int) -> int:
    """The largest block."""
    sites = [[Site(block, kind) for kind in KINDS] for block in range(geometry.num_blocks)]
    return itemsize * max(
        sum(geometry.parameters(geometry.shape(site)) for site in some) for some in sites
    )


def end_bytes(geometry: Geometry, itemsize: int) -> int:
    """Embedding or head, whichever is here."""
    return itemsize * geometry.vocab_size * geometry.hidden_size


def largest_levels(runner: RoundRunner, shares: Sequence[float]) -> int:
    """The levels that are tried of the block that has most."""
    geometry, most = runner.space.geometry, 0
    for _, spaces in planned_searches(runner, shares):
        shapes: dict[Site, list[Shape]] = runner.shapes_of(spaces.values())
        for block in range(geometry.num_blocks):
            levels = [each for kind in KINDS for each in shapes[Site(block, kind)]]
            most = max(most, sum(geometry.parameters(each) for each in levels))
    search = runner.settings.search
    share = tried_share(search) if search is not None else 0.0
    return int(share * runner.model.dtype.itemsize * most)


def fp32_outputs(geometry: Geometry) -> int:
    """Output weights of a block as they were fitted."""
    inputs = (geometry.num_inputs(geometry.shape(site)) for site in geometry.sites[:2])
    return 4 * geometry.hidden_size * sum(inputs)


def logit_bytes(runner: RoundRunner) -> int:
    """Logits that exist at once, and what is made of them."""
    geometry, settings = runner.space.geometry, runner.settings.fitness
    return LOGIT_COPIES * 4 * settings.slice_positions * geometry.vocab_size


def streamed_footprint(
    runner: RoundRunner,
    shares: Sequence[float],
    room: Room,
    *,
    held_out_tokens: int = 0,
    spilled: bool = False,
) -> Footprint:
    """Bytes of a run that reads the model block by block."""
    geometry, settings = runner.space.geometry, runner.settings.fitness
    itemsize = runner.model.dtype.itemsize
    token = geometry.hidden_size * itemsize
    blocks, ends = 2 * block_bytes(geometry, itemsize), end_bytes(geometry, itemsize)
    head = 2 * ends + logit_bytes(runner)  # its product on a CPU packs a copy
    half = settings.cache_bytes // 2
    passes = list(searched_passes(runner, shares))
    branches = max(((each.candidates + 1) * each.tokens * token for each in passes), default=0)
    answers = cuts = 0
    if passes:
        answers = min(half, settings.answer_bytes(runner.search_NL.numel()))
        cuts = min(half, largest_levels(runner, shares))
    kept = {
        "statistics": stream_bytes(runner),
        "search": branches,
        "saving": held_out_tokens * token,
    }
    working = {
        "statistics": max(blocks + site_bytes(runner), ends),
        "search": answers + max(blocks + cuts, head) if passes else 0,
        "saving": max(blocks + fp32_outputs(geometry), head),
    }
    weights = itemsize * sum(parameter.numel() for parameter in runner.model.parameters())
    reads = sum(each.times for each in passes) * weights + read_bytes_of(runner, shares)
    closing = len(shares) * 3  # statistics, perplexity, saving
    supernets = len(list(planned_searches(runner, shares)))
    host = dict.fromkeys(kept, 0) if spilled else kept
    if not room.devices:
        host = {stage: size + host[stage] for stage, size in working.items()}
    return Footprint(
        memory={stage: size + PROGRAM_BYTES for stage, size in host.items()},
        device_memory=working if room.devices else {},
        disk=disk_bytes(runner, shares, 0) + (max(kept.values()) if spilled else 0),
        reads=reads + (closing + supernets) * weights,
    )


def footprint_of(
    way: Way,
    runner: RoundRunner,
    shares: Sequence[float],
    passes: int,
    room: Room,
    held_out_tokens: int = 0,
) -> Footprint:
    """Bytes of a run in one of the ways."""
    if way == "resident":
        return footprint(
            runner, shares, passes, device_memory=room.device_memory, devices=room.devices
        )
    return streamed_footprint(
        runner, shares, room, held_out_tokens=held_out_tokens, spilled=way == "spilled"
    )


def fits(size: Footprint, room: Room) -> bool:
    """Whether a run has room."""
    on_device = max(size.device_memory.values(), default=0)
    host = room.memory is None or max(size.memory.values()) <= room.memory
    return host and (not room.devices or on_device <= room.device_memory)


def choose_way(
    runner: RoundRunner,
    shares: Sequence[float],
    passes: int,
    room: Room,
    held_out_tokens: int = 0,
    ways: Sequence[Way] = WAYS,
) -> tuple[Way, Footprint]:
    """The first way that a run has room for, else the last, and its bytes."""
    for way in ways:
        size = footprint_of(way, runner, shares, passes, room, held_out_tokens)
        if fits(size, room):
            return way, size
    return ways[-1], size
