"""The command `recover`: a pruned model learns from its dense one, and its shape stays.

A killed run goes on with `--resume`, from the last checkpoint in its work folder.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride import distributed
from lightstride.checkpoint import ancestors_of, is_saved, read_record, save_checkpoint
from lightstride.commands.outputs import identity, printed, resumable_writer, save_result
from lightstride.commands.recovering.dense import (
    check_ways,
    open_dense,
    tokens_together,
    weights_hash,
)
from lightstride.commands.recovering.texts import Texts, read_texts
from lightstride.commands.recovering.watch import Watch, measured
from lightstride.config import RecoverConfig
from lightstride.distributed import barrier, rank
from lightstride.errors import ConfigError, ModelError
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.source import WeightSource
from lightstride.recover.loop import Memory, Recovery
from lightstride.recover.loop import recover as learn
from lightstride.recover.student import Learning
from lightstride.training.checkpoint import Progress
from lightstride.training.fsdp import is_asked_for
from lightstride.work import open_work


def recover(config: RecoverConfig) -> Mapping[str, object]:
    """Train a pruned model towards its dense one; the result, as in `result.json`."""
    config = config.resolved()
    distributed.init()
    with resumable_writer(config):
        return recover_alone(config)


def recover_alone(config: RecoverConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    check_ways(config)
    record = read_record(config.model) if Path(config.model).is_dir() else {}
    teacher = config.teacher or recorded_teacher(config.model, record)
    device = "cpu" if is_asked_for() else pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(pick_device(config.device)))
    tokenizer = load_tokenizer(config.model)
    check_vocabulary(tokenizer, load_tokenizer(teacher), teacher)
    smaller = load_model(
        config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )
    texts, weights = read_texts(config, tokenizer), fingerprint(smaller)
    tokens = tokens_together(
        config, smaller, teacher, texts.rows, recovery_of(config), learning_of(config)
    )
    dense = open_dense(config, teacher, dtype, device, tokens)
    run = {**identity(config), "weights": weights, "teacher_weights": weights_hash(dense)}
    open_work(Path(config.work_folder), run, resume=config.resume)
    watch = Watch(smaller, texts, config)
    at = train(config, smaller, dense, tokens, texts, watch)
    numbers = measured(watch, at, texts, config)
    made_from = [run["weights"], run["teacher_weights"], *ancestors_of(config.model)]
    origin = {**record, "teacher": teacher, "ancestors": list(dict.fromkeys(made_from))}
    return finish(config, smaller, tokenizer, numbers, origin, texts)


def recorded_teacher(source: str, record: Mapping[str, object]) -> str:
    """The dense model that a record names; ConfigError where it names none."""
    config = record.get("config")
    named = record.get("teacher") or (config.get("model") if isinstance(config, dict) else None)
    if record.get("kind") not in ("prune", "recover") or not isinstance(named, str):
        raise ConfigError(
            f"{source} has no record of the dense model that it was cut from; name it by --teacher"
        )
    return named


def check_vocabulary(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, teacher: str
) -> None:
    """ModelError unless both models mean the same by every id."""
    if ours.get_vocab() != theirs.get_vocab():
        raise ModelError(f"{teacher} has another vocabulary; a teacher must have the same")


def recovery_of(config: RecoverConfig) -> Recovery:
    """How long and how fast to learn."""
    return Recovery(
        passes=config.passes,
        minutes=config.minutes,
        clock=config.clock,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        step_tokens=config.step_tokens,
        top_k=config.top_k,
        cache_bytes=int(config.cache_gib * 2**30),
        seed=config.seed,
    )


def learning_of(config: RecoverConfig) -> Learning:
    """What learns."""
    return Learning(
        rank=config.rank,
        head=config.learn_head,
        checkpoint_activations=config.checkpoint_activations,
    )


def train(
    config: RecoverConfig,
    smaller: PreTrainedModel,
    dense: PreTrainedModel | WeightSource,
    tokens: int | None,
    texts: Texts,
    watch: Watch,
) -> Progress:
    """Learn to the end of the minutes, or of the passes; so many tokens pass a source together."""

    def announce(memory: Memory) -> None:
        if rank() == 0:
            sys.stderr.write(f"lightstride: {memory_sentence(memory, config, tokens)}\n")

    recovery = recovery_of(config)
    return learn(
        smaller,
        dense,
        adapter_for(smaller.config),
        texts.rows,
        recovery if tokens is None else replace(recovery, ahead_tokens=tokens),
        Path(config.work_folder) / "training",
        learning=learning_of(config),
        look=watch,
        at_end=watch.end,
        shared_on=torch.device(pick_device(config.device)) if is_asked_for() else None,
        announce=announce,
        progress=True,
    )


def memory_sentence(memory: Memory, config: RecoverConfig, tokens: int | None) -> str:
    """What learning takes beside the models."""
    sizes = {name: num_bytes for name, num_bytes in asdict(memory).items() if num_bytes}
    parts = ", ".join(f"{num_bytes / 2**30:.2f} {name}" for name, num_bytes in sizes.items())
    models, how = "the models", ""
    if tokens is not None:
        models = "the pruned model"
        how = f"; its blocks are read from disk, for up to {tokens:,} tokens at a time"
    return (
        f"learning takes {sum(sizes.values()) / 2**30:.2f} GiB beside {models} ({parts}), "
        f"and up to {config.cache_gib:g} GiB of disk for what the dense model says{how}"
    )


def finish(
    config: RecoverConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    numbers: dict[str, object],
    record: Mapping[str, object],
    texts: Texts,
) -> Mapping[str, object]:
    """Save the checkpoint, with the pruned one's record, and the result; the result."""
    result: Mapping[str, object] = {}
    if rank() == 0:
        data = record.get("data")
        used = {**(data if isinstance(data, dict) else {}), **texts.record}
        if not is_saved(config.output):
            whole = {**record, "kind": "recover", "config": config.as_dict(), "data": used}
            save_checkpoint(model, tokenizer, Path(config.output), record=whole)
        hashes = {each.source: each.sha256 for each in (*texts.sources, texts.held_out)}
        said = (
            f"{config.output}: perplexity {numbers['perplexity']:.2f} "
            f"(before {numbers['unrecovered']:.2f}) after {numbers['tokens']:,} tokens"
        )
        with printed(said):
            result = save_result("recover", config, numbers, seed=config.seed, data=hashes)
    barrier()
    return result
