"""The command `recover`: a pruned model learns from its dense one, and its shape stays.

A killed run goes on with `--resume`, from the last checkpoint in its work folder.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride import distributed
from lightstride.checkpoint import ancestors_of, is_saved, read_record, save_checkpoint
from lightstride.commands.outputs import identity, printed, resumable_writer, save_result
from lightstride.commands.recover_texts import Texts, read_texts
from lightstride.config import RecoverConfig
from lightstride.distributed import barrier, rank
from lightstride.errors import ConfigError, ModelError
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.recover.extrapolate import Forecast, extrapolate
from lightstride.recover.loop import Memory, Recovery
from lightstride.recover.loop import recover as learn
from lightstride.recover.student import Learning
from lightstride.training.checkpoint import Progress
from lightstride.training.fsdp import is_asked_for, is_shared_out
from lightstride.work import open_work

EARLY_LOOKS = 5
"""Measurements until the forecast; the first is before the training, the others make it."""
LEAST_STEPS = 12
"""Steps that a forecast needs: from four of them it said 33.5 where 30.5 came (`LOG.md`)."""
EARLY_SECONDS = 30.0
"""Time between them, or an eighth of the whole where that is less."""
LATER_LOOKS = 6
"""Measurements after the forecast."""


class Watch:
    """Measures the held-out text while a model learns, and says once what to expect."""

    def __init__(self, model: PreTrainedModel, texts: Texts, config: RecoverConfig) -> None:
        assert config.minutes is not None
        self.model, self.texts, self.config = model, texts, config
        self.whole = 60 * config.minutes
        self.spacing = min(EARLY_SECONDS, self.whole / 8)
        self.final = float("nan")
        self.final_seconds = 0.0

    def __call__(self, at: Progress) -> None:
        """Measure where it is due."""
        done = len(at.evaluations)
        early = self.spacing * (EARLY_LOOKS - 1)
        due = self.spacing * done
        if done >= EARLY_LOOKS:
            due = early + (done - EARLY_LOOKS + 1) * (self.whole - early) / (LATER_LOOKS + 1)
        if at.seconds >= due:
            at.evaluations.append({"step": at.step, "seconds": at.seconds, "nll": self.nll()})
            if len(at.evaluations) == EARLY_LOOKS and rank() == 0:
                sys.stderr.write(f"\nlightstride: {self.sentence(at)}\n")

    def end(self) -> None:
        """Measure what has come of it."""
        start = time.perf_counter()
        self.final = self.nll()
        self.final_seconds = time.perf_counter() - start

    def nll(self) -> float:
        """Held-out loss in nats."""
        found = 0.0
        decoder = adapter_for(self.model.config).decoder(self.model)
        if rank() == 0 or is_shared_out(decoder):  # a forward then needs all processes
            found = perplexity(self.model, self.texts.held_out, batch_size=4).nll
        return distributed.broadcast_object(found)

    def forecast(self, at: Progress) -> Forecast | None:
        """The end as it was seen from the early measurements; None where there are too few."""
        seen = at.evaluations[:EARLY_LOOKS]
        if len(seen) < EARLY_LOOKS or at.step == 0:
            return None
        learned = [each for each in seen if each["step"]]
        steps = [float(str(each["step"])) for each in learned]
        losses = [float(str(each["nll"])) for each in learned]
        seconds = float(str(seen[-1]["seconds"]))
        if len(set(steps)) < EARLY_LOOKS - 1 or steps[-1] < LEAST_STEPS:
            return None
        return extrapolate(steps, losses, steps[-1] / seconds * self.whole)

    def sentence(self, at: Progress) -> str:
        """Tokens a second, and the perplexity to expect at the end."""
        rate = f"{at.step * self.config.step_tokens / max(at.seconds, 1e-3):,.0f} tokens/s"
        found = self.forecast(at)
        if found is None:
            return f"{rate}; too few steps yet for a forecast"
        return (
            f"{rate}; after {self.config.minutes:g} minutes expect a perplexity of "
            f"{found.perplexity:.2f} ({found.low:.2f} to {found.high:.2f})"
        )


def recover(config: RecoverConfig) -> Mapping[str, object]:
    """Train a pruned model towards its dense one; the result, as in `result.json`."""
    config = config.resolved()
    distributed.init()
    with resumable_writer(config):
        return recover_alone(config)


def recover_alone(config: RecoverConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    record = read_record(config.model) if Path(config.model).is_dir() else {}
    teacher = config.teacher or recorded_teacher(config.model, record)
    device = "cpu" if is_asked_for() else pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(pick_device(config.device)))
    tokenizer = load_tokenizer(config.model)
    check_vocabulary(tokenizer, load_tokenizer(teacher), teacher)
    smaller, dense = (
        load_model(name, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code)
        for name in (config.model, teacher)
    )
    texts = read_texts(config, tokenizer)
    run = {
        **identity(config),
        "weights": fingerprint(smaller),
        "teacher_weights": fingerprint(dense),
    }
    open_work(Path(config.work_folder), run, resume=config.resume)
    watch = Watch(smaller, texts, config)
    at = train(config, smaller, dense, texts, watch)
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


def train(
    config: RecoverConfig,
    smaller: PreTrainedModel,
    dense: PreTrainedModel,
    texts: Texts,
    watch: Watch,
) -> Progress:
    """Learn to the end of the minutes, or of the passes."""

    def announce(memory: Memory) -> None:
        if rank() == 0:
            sys.stderr.write(f"lightstride: {memory_sentence(memory, config)}\n")

    recovery = Recovery(
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
    return learn(
        smaller,
        dense,
        adapter_for(smaller.config),
        texts.rows,
        recovery,
        Path(config.work_folder) / "training",
        learning=Learning(
            rank=config.rank,
            head=config.learn_head,
            checkpoint_activations=config.checkpoint_activations,
        ),
        look=watch,
        at_end=watch.end,
        shared_on=torch.device(pick_device(config.device)) if is_asked_for() else None,
        announce=announce,
        progress=True,
    )


def memory_sentence(memory: Memory, config: RecoverConfig) -> str:
    """What learning takes beside the models."""
    sizes = {name: num_bytes for name, num_bytes in asdict(memory).items() if num_bytes}
    parts = ", ".join(f"{num_bytes / 2**30:.2f} {name}" for name, num_bytes in sizes.items())
    return (
        f"learning takes {sum(sizes.values()) / 2**30:.2f} GiB beside the models ({parts}), "
        f"and up to {config.cache_gib:g} GiB of disk for what the dense model says"
    )


def measured(watch: Watch, at: Progress, texts: Texts, config: RecoverConfig) -> dict[str, object]:
    """The held-out loss at the end, and how it came to it."""
    found = watch.forecast(at)
    before = float(str(at.evaluations[0]["nll"]))
    tokens = at.step * config.step_tokens
    return {
        "perplexity": float(torch.tensor(watch.final, dtype=torch.float64).exp()),
        "unrecovered": float(torch.tensor(before, dtype=torch.float64).exp()),
        "forecast": None if found is None else found.as_dict(),
        "steps": at.step,
        "skipped_steps": at.skipped,
        "tokens": tokens,
        "distinct_tokens": texts.rows.tokens_NL.numel(),
        "seconds": at.seconds,
        "processor_seconds": at.processor_seconds,
        "tokens_per_second": tokens / at.seconds if at.seconds else None,
        "measuring_seconds": watch.final_seconds,
        "losses": at.losses,
        "evaluations": at.evaluations,
    }


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
