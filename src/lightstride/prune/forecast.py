"""The time of a run on this machine, predicted before it starts.

Three kinds of operations are counted, each with a rate that is measured in a few seconds on the
model at hand:

    forward   2 a weight and token, through blocks (as wide as they are) and head; of experts the
              weights of those that a token is sent to
    gram      sum x x^T at every site: 2 * 9/16 I^2 a token (see `cut/gram.py`)
    solve     factorizing, removing and refitting: about (2 + 1/3 removed share) I^3 a site and
              k^2 D a level of k inputs, in the mix of precisions of `cut/refit.py`; and the heads
              of an attention that are tried (`head_choices.py`)

A closing round that corrects drift sums the errors of its sites too, 2 I D a token, and solves for
other targets, I^3 / 3 + 2 I^2 D a site.

The rates are those of products that the run will do: a block on a batch of windows, the Gram
matrix of one batch of FFN inputs, and the pruning of a site that is as wide as the FFN, up to a
bound.  A batch is shortened where a block is so large that a call would take long.

Shapes in the formulas: I inputs of a site's output weights, D hidden size, k inputs of a level.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.block_calls import recorders
from lightstride.models.device import best_time
from lightstride.models.families.adapter import Adapter
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Shape, Site
from lightstride.prune.cut.gram import add_gram, packed_size
from lightstride.prune.cut.refit import prune_ffn
from lightstride.prune.head_choices import choice_operations
from lightstride.prune.rounds import RoundRunner
from lightstride.prune.space.plan import Plan, Space, active_parameters
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSettings

GRAM_SHARE = 9 / 16
PROBE_SHARE = 0.5
"""Share of the blocks that a probe of one site computes anew."""
CHILD_SHARE = 0.9
"""The same of an offspring."""
MOST_CHANNELS = 2048
"""Widest site that is pruned for the measurement."""
MOST_GAIN = 2.5
"""Of the rate of solves over that of the widest one measured."""
GRAM_TOKENS = 4096
MOST_OPERATIONS = 1e12
"""Of one call of the block that is timed; a window at least is run."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Operations a second of this machine."""

    forward: float
    gram: float
    solve: float


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations of one stage."""

    forward: float = 0.0
    gram: float = 0.0
    solve: float = 0.0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            forward=self.forward + other.forward,
            gram=self.gram + other.gram,
            solve=self.solve + other.solve,
        )

    def seconds(self, rates: Rates) -> float:
        """Time on a machine."""
        return self.forward / rates.forward + self.gram / rates.gram + self.solve / rates.solve


def solve_operations(dense: int, widths: Sequence[int], outputs: int, *, nested: bool) -> float:
    """Cutting a site of `dense` inputs to these widths; nested levels share a factorization."""
    removed = 1 - min(widths) / dense
    total = (2 + removed / 3) * dense**3 + removed * dense**2 * outputs
    if nested:
        return total + sum(width**2 * outputs for width in widths)
    return total + sum(width**3 / 3 + 2 * width**2 * outputs for width in widths)


def supernet_operations(
    geometry: Geometry,
    shapes: Sequence[tuple[Site, Sequence[Shape]]],
    num_tokens: int,
    *,
    drift: bool = False,
) -> Operations:
    """Statistics on so many tokens, and all these levels; with or without a correction of drift."""
    gram = solve = forward = 0.0
    for site, levels in shapes:
        dense = geometry.num_inputs(geometry.shape(site))
        widths = [geometry.num_inputs(shape) for shape in levels]
        outputs, experts = geometry.hidden_size, geometry.experts(site)
        forward += 2.0 * geometry.active(site, geometry.shape(site)) * num_tokens
        if experts:
            sent = num_tokens * geometry.experts_per_token
            gram += 2 * GRAM_SHARE * experts[0] ** 2 * sent
            solve += expert_operations(experts, widths, outputs)
            if drift:
                gram += 2.0 * experts[0] * outputs * sent
                solve += len(experts) * target_operations(experts[0], outputs)
            forward += 2.0 * dense * outputs * num_tokens  # by all experts' output weights
        else:
            gram += 2 * GRAM_SHARE * dense**2 * num_tokens
            solve += solve_operations(dense, widths, outputs, nested=site.kind == "ffn")
            whole = geometry.shape(site)
            if isinstance(whole, AttentionShape):
                solve += choice_operations(whole, levels, geometry.head_dim, outputs)
            if drift:
                gram += 2.0 * dense * outputs * num_tokens
                solve += target_operations(dense, outputs)
    return Operations(forward=forward, gram=gram, solve=solve)


def target_operations(inputs: int, outputs: int) -> float:
    """Solving for other targets than a site's own."""
    return inputs**3 / 3 + 2.0 * inputs**2 * outputs


def expert_operations(experts: Sequence[int], widths: Sequence[int], outputs: int) -> float:
    """Cutting experts to these widths together: each twice, once to see what all widths cost."""
    count, dense = len(experts), experts[0]
    eighths = [max(1, dense * eighth // 8) for eighth in range(9)]
    own = [max(1, width // count) for width in widths]
    once = solve_operations(dense, eighths, outputs, nested=True)
    return count * (once + solve_operations(dense, own, outputs, nested=True))


def search_operations(
    space: Space,
    plan: Plan,
    search: GuidedSettings | EvolutionSettings,
    *,
    stride: int = 1,
    probes: bool = True,
) -> Operations:
    """Evaluations of one search around a plan, with or without probing every site."""
    geometry = space.geometry
    blocks = 2.0 * active_parameters(plan, geometry)
    head = 2.0 * geometry.vocab_size * geometry.hidden_size / stride
    if isinstance(search, EvolutionSettings):
        counts = (search.offspring, *(count + 1 for count in search.survivors))
        tokens = search.generations * sum(
            count * tokens for count, tokens in zip(counts, search.tokens, strict=False)
        )
        return Operations(forward=tokens * (CHILD_SHARE * blocks + head))
    counts = (search.offspring, *search.survivors)
    probed = len(space.sites) * search.probe_tokens if probes else 0
    race = sum(count * tokens for count, tokens in zip(counts, search.tokens, strict=False))
    tokens = search.generations * race + sum(search.tokens)
    teacher = sum(search.tokens) * (2.0 * geometry.active_parameters + head)
    return Operations(
        forward=teacher
        + tokens * (CHILD_SHARE * blocks + head)
        + probed * (PROBE_SHARE * blocks + head)
    )


def healing_operations(geometry: Geometry, plans: Sequence[Plan], num_tokens: int) -> Operations:
    """Training on so many tokens: the dense model forward, the cut one forward and backward."""
    total = 0.0
    head = geometry.vocab_size * geometry.hidden_size
    for plan in plans:
        cut = active_parameters(plan, geometry)
        total += 2.0 * num_tokens * (geometry.active_parameters + head + 3 * (cut + head))
    return Operations(forward=total)


def perplexity_operations(geometry: Geometry, plans: Sequence[Plan], num_tokens: int) -> Operations:
    """The perplexity of the dense model and of these plans, on so many tokens."""
    blocks = [geometry.active_parameters, *(active_parameters(plan, geometry) for plan in plans)]
    head = geometry.vocab_size * geometry.hidden_size
    return Operations(forward=2.0 * num_tokens * (sum(blocks) + len(blocks) * head))


def planned_searches(
    runner: RoundRunner, shares: Sequence[float]
) -> Iterator[tuple[int, dict[float, Space]]]:
    """Number of the round, and spaces by sparsity, of every supernet that a run searches.

    Where a round's space lies is not known before the round: that of the uniform plan stands in.
    """
    if runner.settings.search is None:
        return
    centres = {share: runner.centre(share) for share in shares}
    for number in range(1, runner.settings.num_rounds + 1):
        spaces = {share: runner.narrowed(number, centres[share]) for share in shares}
        if number == 1:
            yield number, spaces
        else:
            yield from ((number, {share: space}) for share, space in spaces.items())


def forecast(
    runner: RoundRunner, shares: Sequence[float], passes: int = 0, held_out_tokens: int = 0
) -> dict[str, Operations]:
    """Operations of all supernets, searches and closing rounds of a run, and of what follows.

    That is so many passes of healing, and perplexities on so many held-out tokens.
    """
    settings, geometry = runner.settings, runner.space.geometry
    supernets, searches, closing = Operations(), Operations(), Operations()
    num_windows, window = runner.calibration_NL.shape
    num_tokens = num_windows * window
    early = settings.early_windows(num_windows) * window
    centres = {share: runner.centre(share) for share in shares}
    for number, spaces in planned_searches(runner, shares):
        levels = runner.shapes_of(spaces.values())
        supernets += supernet_operations(geometry, list(levels.items()), early)
        for share, space in spaces.items():
            assert settings.search is not None
            searches += search_operations(
                space,
                centres[share],
                settings.search,
                stride=settings.fitness.stride,
                probes=number == 1,
            )
    for plan in centres.values():
        chosen = [(site, [shape]) for site, shape in plan.shapes.items()]
        drift = settings.closing_streams > 1
        closing += supernet_operations(geometry, chosen, num_tokens, drift=drift)
        more = 2.0 * geometry.active_parameters * num_tokens
        closing += Operations(forward=(settings.closing_streams - 1) * more)
    plans = list(centres.values())
    stages = {"supernets": supernets, "searches": searches, "closing rounds": closing}
    if passes:
        stages["healing"] = healing_operations(geometry, plans, passes * num_tokens)
    if held_out_tokens:
        measured = [*plans, *plans] if passes else plans
        stages["perplexities"] = perplexity_operations(geometry, measured, held_out_tokens)
    return stages


def sentence(stages: dict[str, Operations], rates: Rates) -> str:
    """One line for the user."""
    seconds = {name: operations.seconds(rates) for name, operations in stages.items()}
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if value)
    return f"about {sum(seconds.values()) / 60:.1f} minutes on this machine ({parts})"


def measure_rates(model: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor) -> Rates:
    """Operations a second, for batches like this one."""
    return Rates(
        forward=forward_rate(model, adapter, tokens_BL),
        gram=gram_rate(model, adapter),
        solve=solve_rate(model, adapter),
    )


@torch.inference_mode()
def forward_rate(model: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor) -> float:
    """Rate of one block on one batch."""
    geometry = adapter.geometry(model.config)
    sites = [Site(0, "attention"), Site(0, "ffn")]
    weights = sum(geometry.active(site, geometry.shape(site)) for site in sites)
    most = int(MOST_OPERATIONS / (2.0 * weights * tokens_BL.shape[1]))
    tokens_BL = tokens_BL[: max(1, most)].to(model.device)
    block = adapter.blocks(model)[0]
    with recorders(model, adapter) as stand_ins:
        adapter.decoder(model)(tokens_BL, use_cache=False)
    first = stand_ins[0]
    seconds = best_time(
        lambda: block(first.hidden_BLD, *first.call.args, **first.call.kwargs), 2, model.device
    )
    return 2.0 * weights * tokens_BL.numel() / seconds


def ffn_width(geometry: Geometry) -> int:
    """Channels of the first block's FFN, or of an expert of it."""
    ffn = geometry.ffn[0]
    return max(ffn.experts, default=ffn.num_channels)


def gram_rate(model: PreTrainedModel, adapter: Adapter) -> float:
    """Rate of a Gram matrix of FFN inputs."""
    geometry = adapter.geometry(model.config)
    width = ffn_width(geometry)
    rows_TI = torch.randn(GRAM_TOKENS, width, dtype=model.dtype, device=model.device)
    packed_P = torch.zeros(packed_size(width), device=model.device)
    seconds = best_time(lambda: add_gram(packed_P, rows_TI), 2, model.device)
    return 2 * GRAM_SHARE * width**2 * GRAM_TOKENS / seconds


def solve_rate(model: PreTrainedModel, adapter: Adapter) -> float:
    """Rate of solves at the geometric mean of the widths of FFN and attention.

    Wide ones are not made: their rate grows about like a power of the width, which two narrower
    ones tell (512 to 8,192 channels, `LOG.md`).
    """
    geometry = adapter.geometry(model.config)
    heads = geometry.num_inputs(geometry.attention[0])
    width = math.isqrt(ffn_width(geometry) * max(heads, 1))
    if width <= MOST_CHANNELS:
        return rate_of_cuts(model, width, geometry.hidden_size)
    narrow = rate_of_cuts(model, MOST_CHANNELS // 2, geometry.hidden_size)
    wide = rate_of_cuts(model, MOST_CHANNELS, geometry.hidden_size)
    gain: float = (wide / narrow) ** math.log2(width / MOST_CHANNELS)
    return wide * min(max(gain, 1.0), MOST_GAIN)


def rate_of_cuts(model: PreTrainedModel, width: int, outputs: int) -> float:
    """Rate of pruning an FFN of so many channels to eight widths."""
    rows_TI = torch.randn(2 * width, width, device=model.device)
    weight_OI = torch.randn(outputs, width, device=model.device)
    gram_II = rows_TI.T @ rows_TI
    shapes = [FFNShape(max(1, width * eighth // 8)) for eighth in range(1, 9)]
    seconds = best_time(lambda: prune_ffn(weight_OI, gram_II, shapes), 1, model.device)
    widths = [shape.num_channels for shape in shapes]
    return solve_operations(width, widths, outputs, nested=True) / seconds
