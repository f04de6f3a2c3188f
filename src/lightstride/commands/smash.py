"""What `lightstride smash` does: prompts, answers, scores, training, calibration, checkpoint.

Every stage goes on, with `--resume`, from what it left in the work folder.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride import distributed
from lightstride.checkpoint import ancestors_of, is_headed, is_smashed, save_checkpoint
from lightstride.commands.outputs import (
    check_apart,
    identity,
    printed,
    resumable_writer,
    save_result,
)
from lightstride.commands.smashing.eagle3 import Answers, check_head, smash_with_head
from lightstride.commands.smashing.examples import (
    JUDGE_TOKENS,
    MONITOR_TOKENS,
    examples_hash,
    first_greedy,
    given_prompts,
    prepare_examples,
)
from lightstride.commands.smashing.facts import start_provenance, training_facts
from lightstride.commands.smashing.head import take_head
from lightstride.commands.smashing.memory import (
    check_budgets,
    memory_search,
    plan_memory,
    search_memory,
)
from lightstride.commands.smashing.training import (
    BASE_FOLDER,
    TrainingSetup,
    finalize,
    train_control,
    train_grafts,
)
from lightstride.config import SmashRunConfig
from lightstride.config.smash import EAGLE3_ONLY
from lightstride.distributed import barrier, rank
from lightstride.errors import ConfigError, DataError, ModelError
from lightstride.generate import PlainDecoder
from lightstride.memory.plan_files import MemoryFile, write_plans
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.results import Numbers, markdown_table
from lightstride.smash.data.ceiling import ceilings
from lightstride.smash.data.examples import Example, split_held_out
from lightstride.smash.hub import SmashModel
from lightstride.smash.judge.calibrate import calibrate, expected_calibration_errors
from lightstride.smash.judge.held_out import (
    HeldOutDrafts,
    collect,
    in_dtype,
    summarize,
)
from lightstride.smash.train.start import build_model
from lightstride.work import open_work


def smash(config: SmashRunConfig) -> Mapping[str, object]:
    """Make a model emit several tokens a step; the result, as in `result.json`."""
    config = config.resolved()
    distributed.init()
    check_answers(config)
    with resumable_writer(config):
        return smash_alone(config)


def check_answers(config: SmashRunConfig) -> None:
    """ConfigError where --answers is the output or a model's folder."""
    if config.answers is None:
        return
    check_apart(config.output, "--answers", config.answers)
    if (Path(config.answers) / "config.json").exists():
        raise ConfigError(f"--answers {config.answers} is not allowed: it holds a model")


def smash_alone(config: SmashRunConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    started = time.perf_counter()
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    if config.kv and is_smashed(config.model):
        return plan_memory(config, device, dtype)
    if is_smashed(config.model):
        raise ModelError(
            f"{config.model} is smashed already; give its base, or --kv for its memory"
        )
    if is_headed(config.model):
        raise ModelError(f"{config.model} is a draft head on another model; give that")
    if config.from_head:
        return take_head(config, config.from_head, device, dtype)
    if config.drafter == "micro" and config.start_from and not is_smashed(config.start_from):
        raise ModelError(f"{config.start_from} is not a smashed model to start from")
    start_provenance(config.start_from)  # a damaged one is known before any work
    tokenizer = load_tokenizer(config.model)
    prompts = given_prompts(config, tokenizer)
    base = load_model(
        config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )
    if config.drafter == "eagle3":
        check_head(config, base)
    if config.kv:
        check_budgets(base, memory_search(config))
    run = {**identity(config, "answers", "minutes", *unasked(config)), "base": fingerprint(base)}
    open_work(Path(config.work_folder), run, resume=config.resume)
    examples = prepare_examples(config, PlainDecoder(base, tokenizer), prompts)
    answered = time.perf_counter()
    learn, held_out = split_held_out(examples, config.held_out)
    if not learn or not held_out:
        raise DataError(
            f"of {len(examples)} answers {len(held_out)} are held out, which leaves no others or "
            "none to judge by; give more prompts, or another --held-out"
        )
    if max(len(each.answer_A) for each in learn) < 2:
        raise DataError("no answer has two tokens, so no draft can be learned; give other prompts")
    answers = Answers(learn, held_out, examples_hash(examples), answered - started)
    if config.drafter == "eagle3":
        return smash_with_head(config, base, tokenizer, answers, dtype)
    return smash_with_grafts(config, base, tokenizer, answers, dtype)


def smash_with_grafts(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Answers,
    dtype: torch.dtype,
) -> Mapping[str, object]:
    """Train grafts on these answers, calibrate and judge them, search memory plans, save all."""
    started = time.perf_counter()
    learn, held_out = answers.learn, answers.held_out
    model = build_model(config, base, tokenizer, learn, ancestors_of(config.model))
    before = TrainingSetup.of(config, model, dtype, learn)
    progress = train_grafts(config, before.learner, learn, first_greedy(held_out, MONITOR_TOKENS))
    judged_on = first_greedy(held_out, JUDGE_TOKENS)
    numbers = {
        "tokens_per_step": calibrate_and_judge(config, model, dtype, judged_on),
        "oracle": ceilings_of(held_out, model),
        "training": training_facts(progress, learn, held_out),
        "started_from": start_provenance(config.start_from),
        "graft_parameters": sum(p.numel() for g in model.grafts() for p in g.parameters()),
        "control": train_control(config, before, learn, judged_on),
        "seconds": answers.seconds_with(time.perf_counter() - started),
    }
    finalize(config, model, dtype)
    plans = None
    if config.kv:
        memory, work = memory_search(config), Path(config.work_folder)
        plans, numbers["memory"] = search_memory(model.base, tokenizer, memory, work)
    return save(config, model, tokenizer, numbers, answers.hashed, plans)


def unasked(config: SmashRunConfig) -> tuple[str, ...]:
    """Flags that are no part of a run that does not use them: older runs, without them, go on."""
    plans = () if config.kv else ("kv", "kv_context")
    return plans if config.drafter == "eagle3" else (*plans, "drafter", *EAGLE3_ONLY)


def calibrate_and_judge(
    config: SmashRunConfig, model: SmashModel, dtype: torch.dtype, held_out: Sequence[Example]
) -> Numbers:
    """Calibrate the stop head, and tell what it and the drafts are worth on held-out answers."""

    def seen(*, merged: bool) -> HeldOutDrafts:
        return collect(model, held_out, row_tokens=config.row_tokens or 1, merged=merged)

    with in_dtype(model, dtype):
        merged, unmerged = seen(merged=True), seen(merged=False)
    found = calibrate(merged)
    errors = {
        "before": expected_calibration_errors(merged, None),
        "after": expected_calibration_errors(merged, found),
    }
    model.config.calibration = found
    return {**summarize(unmerged, found), "calibration_error": errors, "calibration": found}


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


def save(
    config: SmashRunConfig,
    model: SmashModel,
    tokenizer: PreTrainedTokenizerBase,
    numbers: Numbers,
    data: str,
    plans: MemoryFile | None,
) -> Mapping[str, object]:
    """Save the checkpoint and the result; the result."""
    output = Path(config.output)
    result: Mapping[str, object] = {}
    if rank() == 0:
        record = {"kind": "smash", "config": config.as_dict(), "data": {config.prompts: data}}
        if not (output / "lightstride.json").exists():
            save_checkpoint(model, tokenizer, output, record=record)
        if plans is not None:
            write_plans(output, plans, {"memory": numbers["memory"]})
        if config.train_base and not (output / BASE_FOLDER / "lightstride.json").exists():
            save_checkpoint(model.base, tokenizer, output / BASE_FOLDER, record=record)
        hashes = {config.prompts: data}
        with printed(modes_table(numbers)):
            result = save_result("smash", config, numbers, seed=config.seed, data=hashes)
    barrier()
    return result


def modes_table(numbers: Numbers) -> str:
    """Tokens per step on held-out answers, for a person."""
    found = numbers["tokens_per_step"]
    assert isinstance(found, dict)
    rows = [["lossless", "", f"{found['lossless']:.2f}", "1.000"]]
    for confidence, value in found["trust"].items():
        steps, right = value["tokens_per_step"], value["agreement"]
        rows.append(["trust", confidence, f"{steps:.2f}", f"{right:.3f}"])
    return markdown_table(["mode", "confidence", "tokens per step", "drafts agree"], rows)
