"""What `lightstride smash` does for a micro decoder once the base has answered.

Training, calibration, the verdict on held-out answers, and with --kv memory plans.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.checkpoint import ancestors_of, is_saved, save_checkpoint
from lightstride.commands.smashing.examples import (
    JUDGE_TOKENS,
    MONITOR_TOKENS,
    Answers,
    first_greedy,
)
from lightstride.commands.smashing.facts import NewDrafter, training_facts
from lightstride.commands.smashing.training import (
    BASE_FOLDER,
    TrainingSetup,
    finalize,
    train_control,
    train_grafts,
)
from lightstride.config import SmashRunConfig
from lightstride.results import Numbers, markdown_table
from lightstride.smash.data.ceiling import ceilings
from lightstride.smash.data.examples import Example
from lightstride.smash.hub import SmashModel
from lightstride.smash.judge.calibrate import calibrate, expected_calibration_errors
from lightstride.smash.judge.held_out import (
    HeldOutDrafts,
    collect,
    in_dtype,
    merged_divergence,
    summarize,
)
from lightstride.smash.train.start import build_model


def learn_grafts(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Answers,
    dtype: torch.dtype,
) -> NewDrafter:
    """Grafts trained on these answers, calibrated and judged."""
    learn, held_out = answers.learn, answers.held_out
    model = build_model(config, base, tokenizer, learn, ancestors_of(config.model))
    before = TrainingSetup.of(config, model, dtype, learn)
    progress = train_grafts(config, before.learner, learn, first_greedy(held_out, MONITOR_TOKENS))
    judged_on = first_greedy(held_out, JUDGE_TOKENS)
    found = calibrate_and_judge(config, model, dtype, judged_on)
    numbers: Numbers = {
        "tokens_per_step": found,
        "oracle": ceilings_of(held_out, model),
        "training": training_facts(progress, answers),
        "graft_parameters": sum(p.numel() for g in model.grafts() for p in g.parameters()),
        "control": train_control(config, before, learn, judged_on),
    }
    finalize(config, model, dtype)

    def write(output: Path, record: Mapping[str, object]) -> None:
        if not is_saved(output):
            save_checkpoint(model, tokenizer, output, record=record)
        if config.train_base and not is_saved(output / BASE_FOLDER):
            save_checkpoint(model.base, tokenizer, output / BASE_FOLDER, record=record)

    return NewDrafter(numbers, modes_table(found), write)


def calibrate_and_judge(
    config: SmashRunConfig, model: SmashModel, dtype: torch.dtype, held_out: Sequence[Example]
) -> Numbers:
    """Calibrate the stop head, and tell what it and the drafts are worth on held-out answers."""

    def seen(*, merged: bool) -> HeldOutDrafts:
        return collect(model, held_out, row_tokens=config.row_tokens or 1, merged=merged)

    merges = model.embedder is not None
    with in_dtype(model, dtype):
        unmerged = seen(merged=False)
        as_decoded = seen(merged=True) if merges else unmerged
    found = calibrate(as_decoded)
    errors = {
        "before": expected_calibration_errors(as_decoded, None),
        "after": expected_calibration_errors(as_decoded, found),
    }
    model.config.calibration = found
    worth = summarize(unmerged, found, trusts=merges)
    if merges:
        with in_dtype(model, dtype):
            cost = merged_divergence(model, held_out, row_tokens=config.row_tokens or 1)
        worth["merged"] = cost
    return {**worth, "calibration_error": errors, "calibration": found}


def ceilings_of(examples: Sequence[Example], model: SmashModel) -> dict[str, float]:
    """Tokens per step that each way to cut allows, and drafts that are always right."""
    chosen = model.micro_vocabulary_M
    return ceilings(
        [each.entropy_A.tolist() for each in examples],
        [each.answer_A.tolist() for each in examples],
        vocab_size=model.config.vocab_size,
        max_segment=model.config.max_segment,
        draftable=None if chosen is None else set(chosen.tolist()),
    )


def modes_table(found: Numbers) -> str:
    """Tokens per step on held-out answers, for a person."""
    rows = [["lossless", "", f"{found['lossless']:.2f}", "1.000"]]
    trust = found.get("trust", {})
    assert isinstance(trust, dict)
    for confidence, value in trust.items():
        steps, right = value["tokens_per_step"], value["agreement"]
        rows.append(["trust", confidence, f"{steps:.2f}", f"{right:.3f}"])
    return markdown_table(["mode", "confidence", "tokens per step", "drafts agree"], rows)
