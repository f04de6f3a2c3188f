"""The training loop: the same for one process and for several, resumable at any step.

Everything random is drawn from the seed and the number of the step, so what a checkpoint holds is
weights, optimizer and step.  The batches of a step are dealt out to the processes; each gradient
is a sum over batches, divided by the answer tokens of the whole step, so the number of processes
does not matter.  The learning rate rises over a warm-up and falls by a cosine to nothing at the
end: of the steps, or of the minutes if those come first.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from lightstride.distributed import broadcast_object, rank, world_size
from lightstride.errors import ConfigError
from lightstride.progress import Bar
from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, RowPlan, make_batch, plan_batches
from lightstride.training.checkpoint import Progress, TrainingFolder
from lightstride.training.fsdp import (
    SECOND_VERSION,
    drop_untouched,
    is_shared_out,
    put_together,
    touched,
    whole_weights,
)
from lightstride.training.schedule import rate_at, set_rates

Evaluation = Callable[[], dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Length and rates of a training."""

    steps: int
    """Updates of the weights."""
    minutes: float | None = None
    """Stop cleanly after this time, if the steps have not ended before."""
    learning_rate: float = 3e-3
    """Largest learning rate of the grafts."""
    base_rate: float = 2e-5
    """Largest learning rate of the base, where it learns."""
    weight_decay: float = 0.01
    warmup: float = 0.05
    """Share of the training in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    row_tokens: int = 512
    """Tokens of a packed row; a longer example has a row of its own."""
    rows: int = 2
    """Rows of a batch."""
    accumulate: int = 4
    """Batches of a step, over all processes."""
    merged_share: float = 0.5
    """Share of batches that are also read with their segments merged."""
    own_cuts_from: float = 0.3
    """From this share of the training on, the model's own drafts may cut the segments."""
    own_cuts_share: float = 0.5
    """Share of the merged batches that they then cut."""
    save_minutes: float = 2.0
    """Time between checkpoints."""
    evaluations: int = 10
    """Number of evaluations on held-out answers."""
    seed: int = 0
    """Seed of the order, the segments, and all else that is random."""

    def share(self, step: int, seconds: float) -> float:
        """Share of the training that is over, from 0 to 1."""
        timed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, timed))


@dataclass(frozen=True)
class StepPlan:
    """One step and its batches."""

    number: int
    plans: tuple[RowPlan, ...]


class Stopwatch:
    """Seconds of training, earlier runs included, and since the last checkpoint."""

    def __init__(self, before: float) -> None:
        self.start = time.monotonic() - before
        self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def since_save(self) -> float:
        return time.monotonic() - self.last

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self.last = time.monotonic()


@runtime_checkable
class Trainable(Protocol):
    """A module that can be trained: it is called with a batch and answers with its losses."""

    def base_weights(self) -> list[nn.Parameter]:
        """Weights that have the base's learning rate."""
        ...


def train(
    learner: nn.Module,
    examples: Sequence[Example],
    training: TrainSettings,
    folder: TrainingFolder,
    evaluate: Evaluation,
    *,
    title: str = "train",
) -> Progress:
    """Train to the end, or to the end of the time; how it went.  Goes on from the folder."""
    if training.accumulate % world_size():
        raise ConfigError(
            f"{training.accumulate} batches a step cannot be shared by {world_size()} processes"
        )
    accelerator = make_accelerator(learner)
    optimizer = make_optimizer(learner, training)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    progress = folder.load(learner, optimizer)
    steps = plan_steps(examples, training, progress.step)
    bar = Bar(
        total=training.steps, initial=progress.step, desc=title, disable=rank() > 0, unit="step"
    )
    clock = Stopwatch(progress.seconds)

    def evaluate_now() -> None:
        with whole_weights(learner):
            progress.evaluations.append({"step": progress.step, **evaluate()})

    with bar:
        for work in steps:
            share = from_rank_zero(training.share(progress.step, clock.seconds))
            if share >= 1:
                break
            if share * training.evaluations >= len(progress.evaluations) + 1:
                evaluate_now()
            set_rates(optimizer, rate_at(share, training.warmup))
            stats = take_step(accelerator, wrapped, optimizer, examples, work, training, share)
            progress.step = work.number + 1
            progress.note(stats)
            progress.seconds = clock.seconds
            bar.set_postfix(progress.shown())
            bar.update()
            if from_rank_zero(clock.since_save > 60 * training.save_minutes):
                folder.save(learner, optimizer, progress)
                clock.saved()
        if not progress.evaluations or progress.evaluations[-1]["step"] != progress.step:
            evaluate_now()
    folder.save(learner, optimizer, progress)
    accelerator.free_memory()
    put_together(learner)
    return progress


def make_accelerator(learner: nn.Module) -> Accelerator:
    """The process's part of the machine; some batches leave some weights without a gradient.

    Where weights are shared out (`accelerate launch --use_fsdp --fsdp_version 2`), they are so
    between steps: a step gathers them whole, since it computes with lowered copies of them.
    """
    device = next(learner.parameters()).device
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        share_out_whole(accelerator)
    return accelerator


def share_out_whole(accelerator: Accelerator) -> None:
    """Let FSDP share out the learner as one module, from the weights that every process has."""
    if not accelerator.is_fsdp2:
        raise ConfigError(SECOND_VERSION)
    plugin = accelerator.state.fsdp_plugin
    plugin.auto_wrap_policy = "no_wrap"
    plugin.cpu_ram_efficient_loading = False


def make_optimizer(learner: nn.Module, training: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what learns; norms, biases and other vectors do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    assert isinstance(learner, Trainable)
    base = {id(parameter) for parameter in learner.base_weights()}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            rate = training.base_rate if id(parameter) in base else training.learning_rate
            decay = training.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def plan_steps(
    examples: Sequence[Example], training: TrainSettings, done: int
) -> Iterator[StepPlan]:
    """The steps that are left."""
    sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
    batches = plan_batches(
        sizes, row_tokens=training.row_tokens, num_rows=training.rows, seed=training.seed
    )
    for number in range(training.steps):
        plans = tuple(itertools.islice(batches, training.accumulate))
        if number >= done:
            yield StepPlan(number, plans)


def take_step(
    accelerator: Accelerator,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    work: StepPlan,
    training: TrainSettings,
    share: float,
) -> dict[str, float]:
    """One update; the losses, as means over what they are of."""
    tokens = sum(len(examples[d].answer_A) for plan in work.plans for row in plan for d in row)
    mine = range(rank(), len(work.plans), world_size())
    totals: dict[str, Tensor] = {}
    for index in mine:
        number = work.number * training.accumulate + index
        merges = is_hit(number, training.merged_share)
        own = share >= training.own_cuts_from and is_hit(
            int(number * training.merged_share), training.own_cuts_share
        )
        batch = batch_of(examples, work.plans[index], accelerator.device)
        with nullcontext() if index == mine[-1] else accelerator.no_sync(wrapped):
            stats = wrapped(batch, merges, own, f"{training.seed}:{number}")
            loss = stats["loss"]
            if is_shared_out(wrapped):
                loss = loss + touched(wrapped)
            accelerator.backward(loss * world_size() / tokens)
        for name, value in stats.items():
            totals[name] = totals.get(name, torch.zeros(())) + value.detach().cpu()
    if is_shared_out(wrapped):
        drop_untouched(wrapped)
    accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
    optimizer.step()
    optimizer.zero_grad()
    return means(totals, tokens)


def batch_of(examples: Sequence[Example], plan: RowPlan, device: torch.device) -> Batch:
    """The documents of a plan as a batch."""
    return make_batch([[examples[document] for document in row] for row in plan], device)


def is_hit(number: int, share: float) -> bool:
    """Whether the share, spread evenly over the numbers, falls on this one."""
    return math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)


def means(totals: dict[str, Tensor], tokens: int) -> dict[str, float]:
    """Means over the answer tokens of all processes; of first tokens after merged histories, over
    their own number."""
    names = ("loss", "later", "stop", "keep", "first", "firsts")
    mine_N = torch.stack([totals.get(name, torch.zeros(())).float() for name in names])
    if world_size() > 1:
        torch.distributed.all_reduce(mine_N)
    *of_tokens, first, firsts = mine_N.tolist()
    found = {name: value / tokens for name, value in zip(names[:4], of_tokens, strict=True)}
    found["first"] = first / max(1.0, firsts)
    return {name: value for name, value in found.items() if value}


def from_rank_zero(value: float) -> float:
    """The first process's value, on all."""
    return broadcast_object(value)
