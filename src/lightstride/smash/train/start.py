"""Grafts on a base, ready to learn."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config import SmashRunConfig
from lightstride.generate.rows import ends_of
from lightstride.models.families.registry import adapter_for
from lightstride.smash.data.examples import Example
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.body import choose_vocabulary
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.graft_files import start_from_grafts
from lightstride.smash.train.initialize import initialize_from_base
from lightstride.smash.train.loop import TrainSettings
from lightstride.smash.train.loss import LossWeights

INITIAL_NORM_SCALE = 0.3
"""Initial scale of the micro decoder's final norm, of the base's: at first it only repeats the
token it is fed, and should be less sure of that."""


def build_model(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    ancestors: Sequence[str] = (),
) -> SmashModel:
    """Grafts of the configured sizes, seeded, begun from the base, with weights of fp32.

    `--start-from` takes grafts of the base's own and of its ancestors (by fingerprint).
    """
    assert config.max_segment is not None
    assert config.micro_layers is not None
    assert config.micro_vocab is not None
    geometry = adapter_for(base.config).geometry(base.config)
    make = SmashConfig.thin if config.grafts == "thin" else SmashConfig.paper
    sizes = make(base.config, geometry, config.max_segment)
    sizes.micro_layers = config.micro_layers
    sizes.micro_vocab_size = None
    vocabulary = None
    if config.micro_vocab < geometry.vocab_size:
        counts_V = torch.zeros(geometry.vocab_size, dtype=torch.long)
        for example in examples:
            counts_V += torch.bincount(example.answer_A, minlength=geometry.vocab_size)
        always = sorted(ends_of(base, tokenizer))
        vocabulary = choose_vocabulary(counts_V, config.micro_vocab, always)
    torch.manual_seed(config.seed)
    model = SmashModel.graft(base, sizes, name=config.model, micro_vocabulary=vocabulary)
    initialize_from_base(model)
    with torch.no_grad():
        if isinstance(model.micro.norm, torch.nn.RMSNorm):
            model.micro.norm.weight.mul_(INITIAL_NORM_SCALE)
    for graft in model.grafts():
        graft.float()
    if config.start_from:
        bases = (model.config.base_fingerprint, *ancestors)
        start_from_grafts(model, config.start_from, bases)
    return model


def loss_weights(config: SmashRunConfig) -> LossWeights:
    """Weights of the losses, by the flags."""
    assert config.short_share is not None
    return LossWeights(
        loss=config.loss,
        feed_own_share=config.feed_own_share,
        short_share=config.short_share,
    )


def train_settings(config: SmashRunConfig) -> TrainSettings:
    """Length and rates of the training, by the flags; only published grafts merge."""
    assert config.steps is not None
    assert config.row_tokens is not None
    assert config.rows is not None
    assert config.accumulate is not None
    return TrainSettings(
        steps=config.steps,
        minutes=config.minutes,
        learning_rate=config.learning_rate,
        base_rate=config.base_rate,
        row_tokens=config.row_tokens,
        rows=config.rows,
        accumulate=config.accumulate,
        merged_share=config.merged_share or 0.0,
        own_cuts_share=config.own_cuts_share,
        seed=config.seed,
    )
