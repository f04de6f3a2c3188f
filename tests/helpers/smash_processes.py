"""A small training in one process or in several."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from helpers.answered_toys import answered, sharp_llama
from helpers.processes import run_ranks
from helpers.smash_toys import toy
from lightstride import distributed
from lightstride.smash.data.examples import Example
from lightstride.smash.train import loop as training
from lightstride.smash.train.loop import TrainSettings, train
from lightstride.smash.train.loss import LossWeights, LoweredSmashLoss
from lightstride.training.checkpoint import TrainingFolder


def fresh_learner() -> LoweredSmashLoss:
    """The same untrained toy every time."""
    model = toy(sharp_llama(), num_layers=1)
    return LoweredSmashLoss(model, LossWeights(), torch.float32)


def train_here(
    folder: Path, examples: Sequence[Example], store: TrainingFolder | None = None
) -> Path:
    """Train in this process; the folder, with the losses in a file."""
    folder.mkdir(exist_ok=True)
    settings = TrainSettings(
        steps=4, row_tokens=40, rows=1, accumulate=4, own_cuts_from=0.5, save_minutes=0.0
    )
    learner = fresh_learner()
    progress = train(learner, examples, settings, store or TrainingFolder(folder), dict)
    if distributed.rank() == 0:
        losses = [loss for _, loss in progress.losses]
        (folder / "losses.json").write_text(json.dumps(losses))
    return folder


def sharing(learner: LoweredSmashLoss) -> Accelerator:
    """An accelerator that shares out weights; `accelerate launch` does so on GPUs only."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    training.share_out_whole(accelerator)
    return accelerator


class Stopped(TrainingFolder):
    """A folder whose training ends after two steps."""

    def save(self, learner, optimizer, at) -> None:
        super().save(learner, optimizer, at)
        if at.step == 2:
            raise InterruptedError


def work(folder: Path, shares_out: bool) -> None:
    """What one of several processes does."""
    distributed.init()
    examples = answered(sharp_llama(), 12)
    if shares_out:
        training.make_accelerator = sharing
        with contextlib.suppress(InterruptedError):
            train_here(folder, examples, Stopped(folder))
    train_here(folder, examples)
    distributed.close()


def train_in_processes(folder: Path, num_ranks: int, *, shares_out: bool = False) -> Path:
    """Train in processes of their own; those that share out weights are stopped once between."""
    run_ranks(work, num_ranks, folder, shares_out)
    return folder
