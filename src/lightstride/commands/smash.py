"""What `lightstride smash` does: prompts, answers, scores, training, checkpoint.

Every stage goes on, with `--resume`, from what it left in the work folder.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightstride import distributed
from lightstride.checkpoint import is_headed, is_smashed
from lightstride.commands.outputs import (
    check_apart,
    identity,
    printed,
    resumable_writer,
    save_result,
)
from lightstride.commands.smashing.eagle3 import check_head, learn_head
from lightstride.commands.smashing.examples import given_prompts, prepare_answers
from lightstride.commands.smashing.facts import NewDrafter, start_provenance
from lightstride.commands.smashing.grafts import learn_grafts
from lightstride.commands.smashing.head import take_head
from lightstride.commands.smashing.memory import (
    check_budgets,
    memory_search,
    plan_memory,
    with_plans,
)
from lightstride.config import SmashRunConfig
from lightstride.config.smash import EAGLE3_ONLY, ONCE_FLAGS, PAPER_ONLY
from lightstride.distributed import barrier, rank
from lightstride.errors import ConfigError, ModelError
from lightstride.generate import PlainDecoder
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_config, load_model, load_tokenizer, locate
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
    if config.kv and has_drafter(config.model):
        return plan_memory(config, device, dtype)
    check_models(config)
    if config.from_head:
        return save(config, take_head(config, config.from_head, device, dtype), {})
    before = start_provenance(config.start_from)  # a damaged one is known before any work
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
    gone = [flag for flag in ONCE_FLAGS if flag not in run]
    open_work(Path(config.work_folder), run, resume=config.resume, gone=gone)
    answers = prepare_answers(config, PlainDecoder(base, tokenizer), prompts)
    answered = time.perf_counter()
    learn = learn_head if config.drafter == "eagle3" else learn_grafts
    drafter = learn(config, base, tokenizer, answers, dtype)
    if config.kv:
        drafter = with_plans(config, base, tokenizer, drafter)
    seconds = {"answers": answered - started, "all": time.perf_counter() - started}
    numbers = {**drafter.numbers, "started_from": before, "seconds": seconds}
    return save(config, replace(drafter, numbers=numbers), {config.prompts: answers.hashed})


def check_models(config: SmashRunConfig) -> None:
    """ModelError for a model that has a drafter already, or experts, or a start that has none."""
    if has_drafter(config.model):
        raise ModelError(
            f"{config.model} is smashed already; give its base, or --kv for its memory"
        )
    settings = load_config(
        config.model, locate(config.model), trust_remote_code=config.trust_remote_code
    )
    if adapter_for(settings).geometry(settings).has_experts:
        raise ModelError(
            f"{config.model} has FFNs of several experts; smash is for models without (prune, "
            "evaluate and generate take it)"
        )
    if config.drafter == "micro" and config.start_from and not is_smashed(config.start_from):
        raise ModelError(f"{config.start_from} is not a smashed model to start from")


def has_drafter(model: str) -> bool:
    """Whether a model is smashed, with grafts or a draft head."""
    return is_smashed(model) or is_headed(model)


def unasked(config: SmashRunConfig) -> tuple[str, ...]:
    """Flags that are no part of a run that does not use them: older runs, without them, go on."""
    plans = () if config.kv else ("kv", "kv_context")
    if config.kv_by == "head":
        plans = (*plans, "kv_by")
    if config.drafter == "eagle3":
        return plans
    merging = () if config.grafts == "paper" else PAPER_ONLY
    return (*plans, *merging, "drafter", *EAGLE3_ONLY)


def save(
    config: SmashRunConfig, drafter: NewDrafter, hashes: Mapping[str, str]
) -> Mapping[str, object]:
    """Save the checkpoint and the result, with hashes of what was learned from; the result.

    Of several processes the first alone writes.
    """
    result: Mapping[str, object] = {}
    if rank() == 0:
        data = {source: {"sha256": found} for source, found in hashes.items()}
        record = {"kind": "smash", "config": config.as_dict(), "data": data}
        drafter.write(Path(config.output), record)
        with printed(drafter.text):
            result = save_result("smash", config, drafter.numbers, seed=config.seed, data=hashes)
    barrier()
    return result
