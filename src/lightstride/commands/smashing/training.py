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
from lightstride.results import Numbers
from lightstride.smash.data.examples import Example
from lightstride.smash.hub import SmashModel
from lightstride.smash.judge.held_out import collect, in_dtype, summarize
from lightstride.smash.train.hidden_cache import GIB, HiddenStateCache
from lightstride.smash.train.loop import train
from lightstride.smash.train.loss import LoweredSmashLoss
from lightstride.smash.train.plain_control import LoweredPlainLoss, answer_nats, reader_of
from lightstride.smash.train.start import loss_weights, train_settings
from lightstride.training.checkpoint import Progress, TrainingFolder

BASE_FOLDER = "base"
"""Where, in the output, a base is that has learned too."""


@dataclass(frozen=True)
class TrainingSetup:
    """A model that is about to learn, and what it is to be compared with."""

    learner: LoweredSmashLoss
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
        if (
            not config.train_base
            and HiddenStateCache.num_bytes(model, learn) <= config.cache_gib * GIB
        ):
            memory = HiddenStateCache(model, learn, config.row_tokens or 1)
        if config.train_base:
            teacher = SmashModel(model.config, lowered_copy(model.base, dtype))
            teacher.requires_grad_(False)
            cast(nn.Module, model.base).float()
            model.base.requires_grad_(True)
            model.retie_head()
        return cls(LoweredSmashLoss(model, loss_weights(config), dtype, teacher, memory), teacher)


def train_grafts(
    config: SmashRunConfig,
    learner: LoweredSmashLoss,
    learn: Sequence[Example],
    watched: Sequence[Example],
) -> Progress:
    """Train, looking at held-out answers now and then; how it went."""
    model = learner.inner.model

    def evaluate_now() -> Numbers:
        with in_dtype(model, learner.dtype):
            found = collect(model, watched, row_tokens=config.row_tokens or 1, merged=False)
        return summarize(found, trusts=model.embedder is not None)

    return train(
        learner,
        learn,
        train_settings(config),
        TrainingFolder(Path(config.work_folder)),
        evaluate_now,
    )


def train_control(
    config: SmashRunConfig,
    before: TrainingSetup,
    learn: Sequence[Example],
    judged_on: Sequence[Example],
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
    train(
        LoweredPlainLoss(plain, dtype), learn, train_settings(config), folder, dict, title="control"
    )
    found: Numbers = {}
    models = {"base": before.teacher, "control": plain, "smashed": before.learner.inner.model}
    for name, model in models.items():
        with in_dtype(model, dtype):
            found[f"nats_{name}"] = answer_nats(model, judged_on, config.row_tokens or 1)
    return found


def finalize(config: SmashRunConfig, model: SmashModel, dtype: torch.dtype) -> None:
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
