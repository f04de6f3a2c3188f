"""The loop of recovery: steps, checkpoints, a clean end; the same for one process and for several.

Everything random is drawn from the seed and the number of the pass, so a checkpoint holds weights,
optimizer, step and schedule.  The rows of a step are dealt out to the processes; gradients are
summed and count every token of the step alike.  A step whose gradient is not finite is left out
and counted; several in a row end the training, with the last checkpoint in place.

Shapes: N rows, B rows of a step, L tokens of each.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightstride.distributed import broadcast_object, rank, world_size
from lightstride.errors import ConfigError
from lightstride.models.families.adapter import Adapter
from lightstride.models.opening.source import WeightSource
from lightstride.progress import Bar
from lightstride.recover.block_teacher import BlockTeacher
from lightstride.recover.clock import Clock, ClockName, now
from lightstride.recover.factored import FactoredAdam
from lightstride.recover.optimizer import MasterAdam
from lightstride.recover.pace import Pace, counted, read_pace, timed
from lightstride.recover.said import SaidRows
from lightstride.recover.student import Learning, Student
from lightstride.recover.teacher import Dense, Says
from lightstride.training.checkpoint import Progress, TrainingFolder
from lightstride.training.fsdp import is_shared_out, local, put_together, share_out
from lightstride.training.schedule import rate_at, set_rates
from lightstride.training.top_k_kl import concatenate

Look = Callable[[Progress], None]
"""Is called before the first step and after every other, and may note evaluations."""
MOST_SKIPPED = 5
"""Steps in a row that may be left out."""
OptimizerName = Literal["adam", "factored"]
OPTIMIZERS: dict[OptimizerName, type[MasterAdam]] = {"adam": MasterAdam, "factored": FactoredAdam}
FIRST_GUESS = 1000
"""Steps of a training by minutes, before one is timed."""


@dataclass(frozen=True)
class Rows:
    """Text to learn from."""

    tokens_NL: Tensor
    """Integers."""
    weights_NL: Tensor
    """fp32: how much the distribution after each token counts; 0 where it does not."""
    ruled_out_NL: Tensor
    """Integers: a token that must not follow, whatever the teacher says; -1 where any may."""

    @staticmethod
    def alike(tokens_NL: Tensor) -> "Rows":
        """Rows of which every position counts."""
        return Rows(tokens_NL, torch.ones(tokens_NL.shape), torch.full_like(tokens_NL, -1))


@dataclass(frozen=True)
class Memory:
    """Bytes that learning takes in a process, beside the models."""

    gradients: int
    optimizer: int
    activations: int
    """Of the rows of a step; 0 where they were not counted."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How long and how fast to learn."""

    passes: int = 1
    """Most passes over the rows."""
    minutes: float | None = None
    """Most minutes; the schedule then ends with them, if the passes do not end before."""
    clock: ClockName = "wall"
    """What the minutes count: time, or processor time by thread."""
    learning_rate: float = 3e-4
    """Largest learning rate; it rises at first and falls by a cosine to nothing."""
    optimizer: OptimizerName = "adam"
    """What remembers the gradients; factored takes half the memory."""
    step_tokens: int = 1024
    """Tokens of a step, over all processes."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    top_k: int = 64
    """Likeliest tokens of the teacher that are told apart."""
    cache_bytes: int = 1 << 30
    """Disk for what the teacher said, for further passes."""
    ahead_tokens: int = 1 << 16
    """Most tokens that a teacher which is read block by block reads together."""
    save_minutes: float = 2.0
    """Time between checkpoints."""
    seed: int = 0
    """Seed of the order of the rows."""


def recover(
    smaller: PreTrainedModel,
    dense: PreTrainedModel | WeightSource,
    adapter: Adapter,
    rows: Rows,
    recovery: Recovery,
    folder: Path,
    *,
    learning: Learning | None = None,
    look: Look = lambda _: None,
    at_end: Callable[[], None] = lambda: None,
    shared_on: torch.device | None = None,
    announce: Callable[[Memory], None] | None = None,
    title: str = "recovering",
    progress: bool = False,
) -> Progress:
    """Train `smaller`, in place, to answer like `dense`; how it went.

    `announce` is told the memory that learning takes, before the start; `at_end` is called before
    updates are merged.  Both models are on the device where to compute, or on the CPU, from where
    blocks are shared out to devices of the kind `shared_on`; `smaller` ends whole on the CPU.  A
    source in the place of the dense model is read block by block, for rows of many steps.  Goes on
    from the checkpoint in `folder`.  ConfigError where no gradient is finite any more.
    """
    kept = SaidRows(folder / "said", recovery.cache_bytes // world_size())
    teacher = teacher_of(dense, adapter, rows, recovery, kept)
    student = Student(smaller, adapter, learning or Learning())
    optimizer = prepared(student, teacher, smaller, rows, recovery, shared_on, announce)
    store = TrainingFolder(folder)
    at = store.load(student, optimizer)
    steps = steps_of(len(rows.tokens_NL), rows.tokens_NL.shape[1], recovery)
    pace = read_pace(at.pace) if at.pace else first_pace(len(steps), recovery)
    clock, in_a_row = Clock(recovery.clock, at), 0
    with Bar(total=100, desc=title, unit="%", disable=not progress or rank() > 0) as bar:
        for number in range(at.step, len(steps)):
            if not at.pace:
                pace = planned(pace, at, clock, recovery, len(steps))
            coming = foreseen(pace, at, clock, recovery)
            teacher.expect(chain.from_iterable(map(own, steps[number : number + coming])))
            clock.without(partial(look, at))
            share = pace.share(number)
            if share >= 1 or shared(is_over(recovery, clock)):
                break
            set_rates(optimizer, rate_at(share, recovery.warmup))
            moved = take_step(student, teacher, optimizer, rows, steps[number], recovery, at)
            in_a_row = 0 if moved else in_a_row + 1
            check_finite(in_a_row, recovery.learning_rate, folder)
            clock.note(at, number + 1, teacher.seconds_ahead)
            move_bar(bar, at, pace, clock, recovery)
            if shared(clock.since_save() >= 60 * recovery.save_minutes):
                pace = planned(pace, at, clock, recovery, len(steps))
                save(store, student, optimizer, at, pace, clock)
        look(at)
    at_end()
    save(store, student, optimizer, at, pace, clock)
    kept.forget()
    finish(smaller, student)
    return at


def teacher_of(
    dense: PreTrainedModel | WeightSource,
    adapter: Adapter,
    rows: Rows,
    recovery: Recovery,
    kept: SaidRows,
) -> Dense | BlockTeacher:
    """The dense model as a teacher."""
    if isinstance(dense, PreTrainedModel):
        return Dense(dense, adapter, recovery.top_k, kept)
    clock = partial(now, recovery.clock)
    most = recovery.ahead_tokens
    return BlockTeacher(dense, recovery.top_k, kept, rows.tokens_NL, most, clock)


def prepared(
    student: Student,
    teacher: Dense | BlockTeacher,
    smaller: PreTrainedModel,
    rows: Rows,
    recovery: Recovery,
    shared_on: torch.device | None,
    announce: Callable[[Memory], None] | None,
) -> MasterAdam:
    """The optimizer of all that learns, once weights are shared out; what it takes is announced."""
    if shared_on is not None:
        assert isinstance(teacher, Dense), "a source is read by every process"
        share_out(smaller, student.decoder, student.blocks, shared_on)
        dense, adapter = teacher.model, teacher.adapter
        share_out(dense, adapter.decoder(dense), adapter.blocks(dense), shared_on)
    optimizer = optimizer_of(student, recovery)
    if announce is not None:
        announce(memory_of(student, rows, recovery))
    return optimizer


def needed(
    smaller: PreTrainedModel, adapter: Adapter, rows: Rows, recovery: Recovery, learning: Learning
) -> Memory:
    """Bytes that learning will take; the model computes what it did."""
    student = Student(smaller, adapter, learning)
    try:
        return memory_of(student, rows, recovery)
    finally:
        student.release()


def memory_of(student: Student, rows: Rows, recovery: Recovery) -> Memory:
    """Bytes that learning takes; activations of weights that are shared out are not counted."""
    activations = 0
    if not is_shared_out(student.decoder):
        activations = activation_bytes(student, rows, recovery)
    bytes_of = OPTIMIZERS[recovery.optimizer].bytes_of
    states = sum(bytes_of(local(parameter)) for parameter in student.learned())
    return Memory(student.gradient_bytes, states, activations)


def finish(smaller: PreTrainedModel, student: Student) -> None:
    """Let nothing learn any more: weights are whole, updates merged."""
    if is_shared_out(student.decoder):
        put_together(smaller, "cpu")
    student.release()


def optimizer_of(student: Student, recovery: Recovery) -> MasterAdam:
    """The optimizer of all that learns."""
    rate = recovery.learning_rate
    group: dict[str, object] = {"params": student.learned(), "lr": rate, "peak": rate}
    return OPTIMIZERS[recovery.optimizer]([group])


def activation_bytes(student: Student, rows: Rows, recovery: Recovery) -> int:
    """Of this process's rows of a step; one is read to know."""
    tokens_1L = rows.tokens_NL[:1].long().to(next(student.parameters()).device)
    mine = -(-rows_of_a_step(rows.tokens_NL.shape[1], recovery) // world_size())
    return mine * student.activation_bytes(tokens_1L)


def take_step(
    student: Student,
    teacher: Says,
    optimizer: MasterAdam,
    rows: Rows,
    chosen: list[int],
    recovery: Recovery,
    at: Progress,
) -> bool:
    """One update; False, and no weight has moved, where its gradient is not finite."""
    loss = gradients(student, teacher, rows, chosen)
    norm = optimizer.clip(recovery.clip)
    is_finite = math.isfinite(loss) and math.isfinite(norm)
    if is_finite:
        optimizer.step()
        at.note({"loss": loss})
    else:
        at.skipped += 1
    optimizer.zero_grad()
    return is_finite


def gradients(student: Student, teacher: Says, rows: Rows, chosen: list[int]) -> float:
    """Leave the gradient of the step's mean loss, summed over all processes, and answer it."""
    device = next(student.parameters()).device
    total = torch.zeros((), device=device)
    count = float(rows.weights_NL[chosen].sum())
    mine = own(chosen)
    said = teacher.say(mine, rows.tokens_NL[mine])
    if mine and count:
        tokens_BL = rows.tokens_NL[mine].long().to(device)
        weights_BL = rows.weights_NL[mine].to(device)
        ruled_out_N = rows.ruled_out_NL[mine].to(device).flatten()
        loss = student(tokens_BL, concatenate(said).without(ruled_out_N), weights_BL) / count
        loss.backward()
        total = loss.detach()
    elif is_shared_out(student.decoder):
        student.take_part(rows.tokens_NL[chosen[:1]].long().to(device))
    if world_size() > 1:
        torch.distributed.all_reduce(total)
        for parameter in student.learned():
            if not isinstance(parameter, DTensor):  # whose gradients are summed
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
    return float(total)


def own(chosen: list[int]) -> list[int]:
    """This process's rows of a step."""
    return chosen[rank() :: world_size()]


def steps_of(num_rows: int, length: int, recovery: Recovery) -> list[list[int]]:
    """The rows of every step: each pass has every row once, in an order of its own."""
    rows_per_step = rows_of_a_step(length, recovery)
    found = []
    for number in range(recovery.passes):
        order = list(range(num_rows))
        random.Random(f"{recovery.seed}:{number}").shuffle(order)
        found += [
            order[start : start + rows_per_step] for start in range(0, num_rows, rows_per_step)
        ]
    return found


def rows_of_a_step(length: int, recovery: Recovery) -> int:
    """Rows of this length, over all processes."""
    return max(1, recovery.step_tokens // length)


def first_pace(num_steps: int, recovery: Recovery) -> Pace:
    """The pace before anything was timed."""
    return counted(num_steps if recovery.minutes is None else min(num_steps, FIRST_GUESS))


def planned(pace: Pace, at: Progress, clock: Clock, recovery: Recovery, num_steps: int) -> Pace:
    """The pace from here on, by what a step of this run has taken."""
    if recovery.minutes is None or at.step == clock.first_step:
        return pace
    found = timed(
        pace,
        at.step,
        seconds_left=60 * recovery.minutes - clock.seconds + at.seconds_ahead,
        seconds_a_step=(clock.here - at.seconds_ahead) / (at.step - clock.first_step),
        most=num_steps - at.step,
    )
    return read_pace(broadcast_object(found.as_list))


def foreseen(pace: Pace, at: Progress, clock: Clock, recovery: Recovery) -> int:
    """Steps that are to come, this one included; one where none was timed."""
    is_timed = bool(at.pace) or at.step > clock.first_step
    return pace.steps_left(at.step) if recovery.minutes is None or is_timed else 1


def is_over(recovery: Recovery, clock: Clock) -> bool:
    """Whether the time is."""
    return recovery.minutes is not None and clock.seconds >= 60 * recovery.minutes


def save(
    store: TrainingFolder,
    student: Student,
    optimizer: MasterAdam,
    at: Progress,
    pace: Pace,
    clock: Clock,
) -> None:
    """Write a checkpoint."""
    at.pace = pace.as_list
    store.save(student, optimizer, at)
    clock.note_save()


def check_finite(in_a_row: int, rate: float, folder: Path) -> None:
    """ConfigError where so many steps in a row without a finite gradient are too many."""
    if in_a_row >= MOST_SKIPPED:
        raise ConfigError(
            f"{MOST_SKIPPED} steps in a row had a loss or a gradient that is not a finite number "
            f"at --learning-rate {rate:g}; the last checkpoint is kept in {folder}: delete it and "
            "give a lower rate"
        )


def move_bar(bar: Bar, at: Progress, pace: Pace, clock: Clock, recovery: Recovery) -> None:
    """Move the bar to the share that is over."""
    timed_share = clock.seconds / (60 * recovery.minutes) if recovery.minutes else 0.0
    bar.n = round(100 * max(pace.share(at.step), min(1.0, timed_share)), 1)
    bar.set_postfix(at.shown() | ({"skipped": at.skipped} if at.skipped else {}))


def shared(value: bool) -> bool:
    """The first process's word, on all."""
    return broadcast_object(value)
