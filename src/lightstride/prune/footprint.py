"""Memory, disk and reads of a run, counted before it starts.

What lies in memory at once, beside the weights of the dense model:

    statistics   the streams (two with a correction) and the inputs of a block's output weights,
                 T (s D + I_attention + I_ffn) b bytes; while sums of the widest site's shards
                 wait for each other, 9 I^2 bytes (and 16 I D with a correction); while it is
                 solved, 8 I^2 + 22 I D, the Gram matrix, its factor and weights in fp32 (of heads
                 28 I^2: cuts on the way to fewer groups too), or where solves are in fp64
                 12 I^2 + 36 I D (56 I^2); of E experts W wide 8 E W^2 more, and I = E W for
                 the streams
    search       the dense model's answers (6 k + 4 bytes a scored position) and weights of the cuts
                 that were tried, each at most half of `cache_bytes`; hidden states after every
                 block and some logits
    saving       the cut model's own weights, once in the model's type, and its output weights in
                 fp32
    healing      16 bytes more for every block parameter kept

Streams always lie on the host.  Where a model is small enough for an accelerator (as
`prune/devices.py` decides), all the rest is there; else blocks are streamed through it for
statistics, and the search spreads the model over all of them.

Shapes in the formulas: T calibration tokens, s streams, D hidden size, I inputs of a site's output
weights, k likeliest tokens, b bytes of a weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lightstride.distributed import NUM_SHARDS
from lightstride.models.shapes import KINDS, Geometry, Site
from lightstride.prune.cut.gram import packed_size
from lightstride.prune.cut.refit import ENOUGH_DAMPING
from lightstride.prune.cut.supernet import supernet_bytes
from lightstride.prune.devices import SHARE_FOR_WEIGHTS
from lightstride.prune.forecast import planned_searches
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.space.plan import Plan, num_parameters
from lightstride.recover.optimizer import STATE_BYTES
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSettings

PROGRAM_BYTES = 500 << 20
"""Of Python, torch and transformers, on a CPU."""
SUMS_AT_ONCE = NUM_SHARDS.bit_length()
"""Of a binary tree over the shards: one a level, and the next one."""
LOGIT_COPIES = 4
"""Of the logits that exist at once, in fp32: they, their exponentials, what is compared."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a run takes on a machine."""

    memory: dict[str, int]
    """Peak of the host's memory in each stage, weights and program included."""
    device_memory: dict[str, int]
    """Peak of each accelerator's memory in each stage; empty without one."""
    disk: int
    """Peak of the work folder and all checkpoints."""
    reads: int
    """The weights once, and every level of every supernet once."""


def disk_bytes(runner: RoundRunner, shares: Sequence[float], passes: int) -> int:
    """Disk at its peak: while the largest supernet is searched, or when the last size is written.

    Supernets are gone before the first checkpoint; a size's closing weights, and what heals it, are
    there until it is written.
    """
    geometry = runner.space.geometry
    whole = sum(parameter.numel() for parameter in runner.model.parameters())
    sizes = [whole - int(share * geometry.prunable_parameters) for share in shares]
    healing = STATE_BYTES * geometry.prunable_parameters if passes else 0
    closing = max(closing_bytes(runner, share) for share in shares)
    written = runner.model.dtype.itemsize * sum(sizes) + closing + healing
    return max(runner.supernet_bytes(shares), written)


def closing_bytes(runner: RoundRunner, share: float) -> int:
    """The weights of a closing round, as they are kept in the work folder."""
    chosen = {site: [shape] for site, shape in runner.centre(share).shapes.items()}
    return supernet_bytes(runner.space.geometry, chosen)


def read_bytes_of(runner: RoundRunner, shares: Sequence[float]) -> int:
    """Bytes read from disk: the dense weights, and every level of every supernet, once."""
    geometry, itemsize = runner.space.geometry, runner.model.dtype.itemsize
    total = itemsize * sum(parameter.numel() for parameter in runner.model.parameters())
    for _, spaces in planned_searches(runner, shares):
        total += supernet_bytes(geometry, runner.shapes_of(spaces.values()))
    return total + sum(closing_bytes(runner, share) for share in shares)


def stream_bytes(runner: RoundRunner) -> int:
    """Activations that the closing round keeps."""
    geometry, settings = runner.space.geometry, runner.settings
    inputs = [
        max(geometry.num_inputs(geometry.shape(Site(block, kind))) for block in blocks(geometry))
        for kind in KINDS
    ]
    kept = settings.closing_streams * geometry.hidden_size + sum(inputs)
    return runner.calibration_NL.numel() * kept * runner.model.dtype.itemsize


def blocks(geometry: Geometry) -> range:
    """Numbers of the blocks."""
    return range(geometry.num_blocks)


def solve_bytes(geometry: Geometry, damping: float) -> int:
    """The widest site, while it is solved."""
    of_ffn, of_heads, of_weights = (8, 28, 22) if damping >= ENOUGH_DAMPING else (12, 56, 36)

    def of(site: Site) -> int:
        inputs, experts = geometry.num_inputs(geometry.shape(site)), geometry.experts(site)
        width = max(experts, default=inputs)
        grams = 2 * 4 * len(experts) * width**2  # as summed, and with tokens that are missing
        matrices = of_heads if site.kind == "attention" else of_ffn
        return grams + matrices * width**2 + of_weights * inputs * geometry.hidden_size

    return max(of(site) for site in geometry.sites)


def sum_bytes(geometry: Geometry, *, drift: bool) -> int:
    """The sums of the widest site's shards that are there at once, in one process."""

    def of(site: Site) -> int:
        inputs, experts = geometry.num_inputs(geometry.shape(site)), geometry.experts(site)
        packed = sum(map(packed_size, experts or (inputs,)))
        return 4 * SUMS_AT_ONCE * (packed + drift * inputs * geometry.hidden_size)

    return max(of(site) for site in geometry.sites)


def site_bytes(runner: RoundRunner) -> int:
    """The widest site, while it is summed or solved."""
    geometry, settings = runner.space.geometry, runner.settings
    summed = sum_bytes(geometry, drift=bool(settings.correction))
    return max(summed, solve_bytes(geometry, settings.damping))


def search_bytes(runner: RoundRunner, shares: Sequence[float]) -> int:
    """Answers, cut weights and activations of a search."""
    settings, geometry = runner.settings.fitness, runner.space.geometry
    itemsize = runner.model.dtype.itemsize
    if runner.settings.search is None:
        return 0
    half = settings.cache_bytes // 2
    answers = min(half, settings.answer_bytes(runner.search_NL.numel()))
    levels = 0
    for _, spaces in planned_searches(runner, shares):
        shapes = runner.shapes_of(spaces.values())
        cut = sum(geometry.parameters(each) for some in shapes.values() for each in some)
        levels = max(levels, int(tried_share(runner.settings.search) * itemsize * cut))
    hidden = (geometry.num_blocks + 1) * settings.batch_tokens * geometry.hidden_size * itemsize
    logits = LOGIT_COPIES * 4 * settings.slice_positions * geometry.vocab_size
    return answers + min(half, levels) + hidden + logits


def tried_share(search: GuidedSettings | EvolutionSettings) -> float:
    """Share of all levels that a search gives to a candidate, and so keeps cut weights of.

    In the default search on made-up losses of 12 and 30 blocks it was 0.45 to 0.53 for 8 plans,
    0.58 to 0.62 for 12, 0.66 to 0.77 for 24, and 0.77 to 0.85 for 72; of the published one, all.
    """
    if isinstance(search, EvolutionSettings):
        return 1.0
    plans = search.generations * search.offspring
    return plans / (plans + 8)


def cut_bytes(geometry: Geometry, plan: Plan, itemsize: int) -> int:
    """A cut model beside the dense one, with its output weights as they were fitted."""
    inputs = sum(geometry.num_inputs(shape) for shape in plan.shapes.values())
    return itemsize * num_parameters(plan, geometry) + 4 * inputs * geometry.hidden_size


def footprint(
    runner: RoundRunner,
    shares: Sequence[float],
    passes: int = 0,
    *,
    device_memory: int = 0,
    devices: int = 0,
) -> Footprint:
    """Bytes of a run on a machine with so many accelerators of such a size."""
    geometry, itemsize = runner.space.geometry, runner.model.dtype.itemsize
    weights = itemsize * sum(parameter.numel() for parameter in runner.model.parameters())
    plans = [runner.centre(share) for share in shares]
    stages = {
        "statistics": site_bytes(runner),
        "search": search_bytes(runner, shares),
        "saving": max(cut_bytes(geometry, plan, itemsize) for plan in plans),
    }
    if passes:
        kept = max(num_parameters(plan, geometry) for plan in plans)
        stages["healing"] = (16 + itemsize) * kept
    streams = stream_bytes(runner)
    host = {"statistics": streams}
    device: dict[str, int] = {}
    if not devices:
        host = {stage: size + host.get(stage, 0) + weights for stage, size in stages.items()}
    elif weights <= SHARE_FOR_WEIGHTS * device_memory:
        device = {stage: size + weights for stage, size in stages.items()}
        host |= {"opening": weights}
    else:
        block = itemsize * max(
            sum(geometry.parameters(geometry.shape(Site(each, kind))) for kind in KINDS)
            for each in blocks(geometry)
        )
        device = {
            "statistics": stages["statistics"] + block,
            "search": stages["search"] + weights // devices,
        }
        host = {"statistics": streams + weights, "saving": stages["saving"] + weights}
    return Footprint(
        memory={stage: size + PROGRAM_BYTES for stage, size in host.items()},
        device_memory=device,
        disk=disk_bytes(runner, shares, passes),
        reads=read_bytes_of(runner, shares),
    )
