"""Short trainings of an EAGLE-3 head for a toy, in this process or in several."""

from collections.abc import Sequence
from pathlib import Path

import torch

from helpers.answered_toys import answered
from helpers.headed_toys import deep_toy
from helpers.processes import run_ranks
from lightstride import distributed
from lightstride.smash.data.examples import Example
from lightstride.smash.model.reading import BaseReader
from lightstride.smash.train.eagle3_learner import HeadLearning, LoweredHeadLoss
from lightstride.smash.train.eagle3_start import learning_parts, new_head
from lightstride.smash.train.hidden_cache import HiddenStateCache
from lightstride.smash.train.loop import TrainSettings, train
from lightstride.training.checkpoint import Progress, TrainingFolder


def head_learner(
    examples: Sequence[Example], *, remembers: bool = False, **changes: object
) -> LoweredHeadLoss:
    """The same untrained head every time."""
    base = deep_toy()
    head = learning_parts(new_head(base, examples, draft_vocab=30, always=(257,), seed=1))
    reader = BaseReader(base, head.config.taps)
    memory = HiddenStateCache(reader, examples, 60, prompts=True) if remembers else None
    learning = HeadLearning(**{"num_steps": 3, **changes})  # type: ignore[arg-type]
    return LoweredHeadLoss(head, reader, learning, torch.float32, memory)


def head_settings(**changes: object) -> TrainSettings:
    values = {"steps": 6, "row_tokens": 60, "rows": 1, "accumulate": 2, "save_minutes": 100.0}
    return TrainSettings(**{**values, **changes})  # type: ignore[arg-type]


def train_head_here(
    folder: Path,
    learner: LoweredHeadLoss,
    examples: Sequence[Example],
    store: TrainingFolder | None = None,
    **changes: object,
) -> Progress:
    """Train in this process."""
    folder.mkdir(exist_ok=True)
    settings = head_settings(**changes)
    return train(learner, examples, settings, store or TrainingFolder(folder), dict)


def work(folder: Path) -> None:
    """What one of several processes does."""
    distributed.init()
    examples = answered(deep_toy(), 8)
    train_head_here(folder, head_learner(examples), examples, steps=3)
    distributed.close()


def train_head_in_processes(folder: Path, num_ranks: int) -> Path:
    """Train in processes of their own."""
    run_ranks(work, num_ranks, folder)
    return folder
