"""One training from beginning to end, and beside it the control where the base learns too."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from lightstride.config import SmashRunConfig
from lightstride.models.fingerprint import fingerprint
from lightstride.smash.data.examples import Example
from lightstride.smash.hub import SmashModel
from lightstride.smash.judge.held_out import lowered, observe, report
from lightstride.smash.train.hidden_cache import GIB, Memory
from lightstride.smash.train.loop import train
from lightstride.smash.train.loss import Learner
from lightstride.smash.train.plain_control import PlainLearner, answer_nats, reader_of
from lightstride.smash.train.start import learning_of, training_of
from lightstride.training.checkpoint import Progress, TrainingFolder

Numbers = dict[str, object]
BASE_FOLDER = "base"
"""Where, in the output, a base is that has learned too."""


@dataclass(frozen=True)
class Before:
    """A model that is about to learn, and what it is to be compared with."""

    learner: Learner
    teacher: SmashModel | None
    """The base as it was, where it learns too."""

    @classmethod
    def of(
        cls,
        config: SmashRunConfig,
        model: SmashModel,
        dtype: torch.dtype,
        learn: Sequence[Example],
    ) -> Self:
        """A learner for the model; a base that learns leaves a copy of itself behind."""
        teacher = memory = None
        if not config.train_base and Memory.num_bytes(model, learn) <= config.cache_gib * GIB:
            memory = Memory(model, learn, config.row_tokens or 1)
        if config.train_base:
            teacher = SmashModel(model.config, lowered_copy(model.base, dtype))
            teacher.requires_grad_(False)
            cast(nn.Module, model.base).float()
            model.base.requires_grad_(True)
            model.retie_head()
        return cls(Learner(model, learning_of(config), dtype, teacher, memory), teacher)


def teach(
    config: SmashRunConfig, learner: Learner, learn: Sequence[Example], watched: Sequence[Example]
) -> Progress:
    """Train, looking at held-out answers now and then; how it went."""
    model = learner.inner.model

    def look() -> Numbers:
        with lowered(model, learner.dtype):
            return report(observe(model, watched, row_tokens=config.row_tokens or 1, merged=False))

    return train(
        learner, learn, training_of(config), TrainingFolder(Path(config.work_folder)), look
    )


def control(
    config: SmashRunConfig, before: Before, learn: Sequence[Example], judged_on: Sequence[Example]
) -> Numbers | None:
    """The base trained plainly on the same data, and how likely held-out answers are to each."""
    if before.teacher is None:
        return None
    dtype = before.learner.dtype
    plain = reader_of(lowered_copy(before.teacher.base, torch.float32), before.teacher)
    plain.requires_grad_(False)
    plain.base.requires_grad_(True)
    folder = TrainingFolder(Path(config.work_folder) / "control")
    folder.folder.mkdir(exist_ok=True)
    train(PlainLearner(plain, dtype), learn, training_of(config), folder, dict, title="control")
    found: Numbers = {}
    models = {"base": before.teacher, "control": plain, "smashed": before.learner.inner.model}
    for name, model in models.items():
        with lowered(model, dtype):
            found[f"nats_{name}"] = answer_nats(model, judged_on, config.row_tokens or 1)
    return found


def settle(config: SmashRunConfig, model: SmashModel, dtype: torch.dtype) -> None:
    """Give the model the precision and the identity that it is saved with."""
    for graft in model.grafts():
        graft.to(dtype)
    if config.train_base:
        cast(nn.Module, model.base).to(dtype)
        model.base.requires_grad_(False)
        model.retie_head()
        model.config.base = BASE_FOLDER
        model.config.base_fingerprint = fingerprint(model.base)


def lowered_copy(base: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of a base in another precision."""
    twin = copy.deepcopy(base)
    cast(nn.Module, twin).to(dtype)
    return twin
