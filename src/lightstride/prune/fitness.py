"""Fitness of a plan: how far the cut model's answers are from the dense model's.

Candidates are run as cut layers.  They are sorted, so that those with the same first blocks
stand together, and blocks that two neighbours share are computed once (`run_sorted`).  The
dense model's answers are kept for its likeliest tokens only (`training/top_k_kl.py`), logits
exist for a slice of positions at a time, and cut weights are kept as long as memory allows.

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), eq. 6 and section 3.4:
sum_l alpha_l |h_l dense - h_l sparse|^2 + beta KL(dense | sparse).  We differ: the mass
outside the top k counts, hidden states are compared relative to the dense ones' length, and
nothing is zeroed, so that a candidate takes as long as the model that is made of it.

Shapes: N windows, L tokens each, B windows of a batch, D hidden size, P scored positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.distributed import gather_objects, pieces, rank, world_size
from lightstride.errors import ConfigError
from lightstride.models.block_calls import Call, logits_at, recorders
from lightstride.models.families.adapter import Adapter
from lightstride.models.shapes import KINDS, Kind, Shape, Site
from lightstride.prune.candidate_blocks import CandidateBlock, CutSiteOf, WeightCache
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.space.plan import Plan
from lightstride.search.evaluation_log import Sample
from lightstride.training.top_k_kl import (
    Teacher,
    concatenate,
    divergence,
    relative_error,
    remember,
    split,
)


@dataclass(frozen=True, kw_only=True)
class FitnessSettings:
    """Settings of the comparison with the dense model."""

    top_k: int = 512
    """Likeliest tokens of the dense model that are outcomes of their own."""
    stride: int = 1
    """Score every so many positions."""
    batch_tokens: int = 2048
    """Tokens that run through a block at once."""
    slice_positions: int = 256
    """Positions whose logits exist at once."""
    cache_bytes: int = 2 << 30
    """Memory for the dense model's answers and for cut weights, half each."""
    renormalize: bool = False
    """Compare over the top k alone, as published."""
    hidden_weight: float = 0.0
    """Weight of the hidden states' relative error, 0 as in the published runs."""
    hidden_blocks: tuple[int, ...] = ()
    """Blocks after which hidden states are compared."""

    def answer_bytes(self, num_tokens: int) -> int:
        """Memory of the dense model's answers on so many tokens."""
        return Teacher.bytes_per_position(self.top_k) * num_tokens // self.stride

    def check_room(self, num_tokens: int) -> None:
        """Raise ConfigError unless the dense model's answers on so many tokens fit the cache."""
        needed = self.answer_bytes(num_tokens)
        allowed = self.cache_bytes // 2
        if needed > allowed:
            raise ConfigError(
                f"the dense model's {self.top_k} likeliest tokens on {num_tokens:,} tokens take "
                f"{needed >> 20} MiB, {allowed >> 20} MiB are allowed (half of --cache-gib)"
            )

    def most_answers(self, length: int) -> int:
        """How many windows of this length the dense model's answers are kept of."""
        return max(1, self.cache_bytes // 2 // self.answer_bytes(length))

    def windows_of(self, sample: Sample, windows_NL: Tensor) -> list[int]:
        """The windows of a sample; ConfigError where there are too few, or too much to keep."""
        num_windows, length = windows_NL.shape
        count = -(-sample.tokens // length)
        if count > num_windows:
            raise ConfigError(
                f"a sample of {sample.tokens} tokens, but the search text has {windows_NL.numel()}"
            )
        self.check_room(sample.tokens)
        return [(sample.first_window + i) % num_windows for i in range(count)]

    def scored_logits(
        self, model: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor, hidden_BLD: Tensor
    ) -> Iterator[Tensor]:
        """Logits (P, V) of the scored positions of all windows, a slice of them at a time."""
        length, most = tokens_BL.shape[1], self.slice_positions
        scored_P = torch.arange(self.stride - 1, length, self.stride, device=tokens_BL.device)
        for logits_BPV in logits_at(model, adapter, tokens_BL, hidden_BLD, scored_P, most):
            yield logits_BPV.flatten(0, 1)


@dataclass(frozen=True)
class DenseAnswer:
    """The dense model's predictions on one window."""

    teacher: Teacher
    hidden: dict[int, Tensor]
    """Its hidden states after the blocks that are compared, each (L, D)."""


@dataclass(frozen=True)
class WindowBatch:
    """Some windows, embedded, and how the decoder calls every block on them."""

    tokens_BL: Tensor
    hidden_BLD: Tensor
    calls: list[Call]
    answers: list[DenseAnswer]


@dataclass
class Fitness:
    """Answers `Evaluate` for plans whose levels there are; leaves the model dense."""

    model: PreTrainedModel
    adapter: Adapter
    windows_NL: Tensor
    level_of: CutSiteOf
    settings: FitnessSettings = field(default_factory=FitnessSettings)
    dense_answers: dict[int, DenseAnswer] = field(default_factory=dict)
    """The dense model's answers by window, last used last; fitnesses of equal settings share."""

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.blocks = list(self.adapter.blocks(self.model))
        self.dense = DenseSites.of(self.model, self.adapter)
        self.most_answers = self.settings.most_answers(self.windows_NL.shape[1])
        self.weights = WeightCache(self.dense, self.level_of, self.settings.cache_bytes // 2)
        self.candidates = [
            CandidateBlock(self.adapter, block, index, self.weights)
            for index, block in enumerate(self.blocks)
        ]

    def __call__(self, plans: Sequence[Plan], sample: Sample) -> list[float]:
        """Fitness of each plan in nats a token, lower is better; ranks share the plans out."""
        order = sorted(range(len(plans)), key=lambda i: block_keys(plans[i]))
        mine = pieces(range(len(order)), world_size())[rank()]
        chosen = [plans[order[i]] for i in mine]
        with torch.inference_mode(), self.restoring():
            sums = [0.0] * len(chosen)
            batches = self.sample_batches(sample)
            for batch in batches:
                for i, value in enumerate(self.run_sorted(chosen, batch)):
                    sums[i] += value
        num_windows = sum(len(batch.answers) for batch in batches)
        answers = [total / num_windows for part in gather_objects(sums) for total in part]
        by_plan = dict(zip(order, answers, strict=True))
        return [by_plan[i] for i in range(len(plans))]

    def run_sorted(self, plans: Sequence[Plan], batch: WindowBatch) -> Iterator[float]:
        """Fitness of each plan on one batch; neighbours' common first blocks run once."""
        hidden = [batch.hidden_BLD]
        before: Plan | None = None
        for plan in plans:
            start = 0 if before is None else common_blocks(before, plan)
            del hidden[start + 1 :]
            for index in range(start, len(self.blocks)):
                self.candidates[index].install(shapes_at(plan, index))
                hidden.append(self.candidates[index](hidden[-1], batch.calls[index]))
            before = plan
            yield self.score(batch, hidden)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """The model is dense again afterwards."""
        try:
            yield
        finally:
            for block in self.candidates:
                block.restore()

    def score(self, batch: WindowBatch, hidden: Sequence[Tensor]) -> float:
        """Fitness on one batch, summed over its windows, given all hidden states."""
        teacher = concatenate([answer.teacher for answer in batch.answers])
        slices = self.logits(batch.tokens_BL, hidden[-1])
        mean = mean_divergence(teacher, slices, renormalize=self.settings.renormalize)
        fitness = mean * len(batch.answers)
        for row, answer in enumerate(batch.answers):
            for index, dense_LD in answer.hidden.items():
                error = relative_error(dense_LD, hidden[index + 1][row])
                fitness += self.settings.hidden_weight * float(error)
        return fitness

    def logits(self, tokens_BL: Tensor, hidden_BLD: Tensor) -> Iterator[Tensor]:
        """Logits of the scored positions of all windows, a slice of positions at a time."""
        return self.settings.scored_logits(self.model, self.adapter, tokens_BL, hidden_BLD)

    def sample_batches(self, sample: Sample) -> list[WindowBatch]:
        """The batches of a sample; the model must be dense."""
        wanted = self.settings.windows_of(sample, self.windows_NL)
        step = max(1, self.settings.batch_tokens // self.windows_NL.shape[1])
        return [self.batch(wanted[start : start + step]) for start in range(0, len(wanted), step)]

    def batch(self, windows: list[int]) -> WindowBatch:
        """Some windows with the dense model's answers; it runs for those that it has none of."""
        tokens_BL = self.windows_NL[windows].to(self.device)
        batch = self.embed(tokens_BL)
        new = [i for i, window in enumerate(windows) if window not in self.dense_answers]
        if new:
            for i, answer in zip(new, self.record_dense(self.embed(tokens_BL[new])), strict=True):
                self.dense_answers[windows[i]] = answer
        for window in windows:
            self.dense_answers[window] = self.dense_answers.pop(window)
            batch.answers.append(self.dense_answers[window])
        while len(self.dense_answers) > self.most_answers:
            del self.dense_answers[next(iter(self.dense_answers))]
        return batch

    def embed(self, tokens_BL: Tensor) -> WindowBatch:
        """Embedded windows, and how the decoder calls its blocks on them."""
        with recorders(self.model, self.adapter) as stand_ins:
            self.adapter.decoder(self.model)(tokens_BL, use_cache=False)
        return WindowBatch(
            tokens_BL, stand_ins[0].hidden_BLD, [each.call for each in stand_ins], []
        )

    def record_dense(self, batch: WindowBatch) -> list[DenseAnswer]:
        """The dense model's predictions on each window."""
        hidden = [batch.hidden_BLD]
        for block, call in zip(self.candidates, batch.calls, strict=True):
            hidden.append(block(hidden[-1], call))
        parts = [remember(p, self.settings.top_k) for p in self.logits(batch.tokens_BL, hidden[-1])]
        teachers = split(concatenate(parts), len(batch.tokens_BL))
        compared = self.settings.hidden_blocks if self.settings.hidden_weight else ()
        return [
            DenseAnswer(teacher, {index: hidden[index + 1][row] for index in compared})
            for row, teacher in enumerate(teachers)
        ]


def mean_divergence(teacher: Teacher, slices: Iterator[Tensor], *, renormalize: bool) -> float:
    """Mean divergence over all scored positions, whose logits come a slice at a time."""
    total, where = 0.0, 0
    for logits_PV in slices:
        rows = slice(where, where + len(logits_PV))
        where = rows.stop
        values_P = divergence(teacher.rows(rows), logits_PV, renormalize=renormalize)
        total += float(values_P.double().sum())
    return total / where


def shapes_at(plan: Plan, index: int) -> dict[Kind, Shape]:
    """What a plan has in one block."""
    return {kind: plan.shapes[Site(index, kind)] for kind in KINDS}


def block_keys(plan: Plan) -> tuple[tuple[Shape, ...], ...]:
    """The shapes of every block, in order: plans with the same first blocks sort together."""
    num_blocks = len(plan.shapes) // len(KINDS)
    return tuple(tuple(shapes_at(plan, index).values()) for index in range(num_blocks))


def common_blocks(one: Plan, other: Plan) -> int:
    """The number of first blocks that two plans share."""
    count = 0
    for left, right in zip(block_keys(one), block_keys(other), strict=True):
        if left != right:
            break
        count += 1
    return count
