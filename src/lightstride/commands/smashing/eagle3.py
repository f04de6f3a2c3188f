"""What `lightstride smash --drafter eagle3` does once the base has answered: train and judge."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.checkpoint import is_saved, save_headed
from lightstride.commands.smashing.examples import (
    JUDGE_TOKENS,
    MONITOR_TOKENS,
    Answers,
    first_greedy,
)
from lightstride.commands.smashing.facts import NewDrafter, head_facts, training_facts
from lightstride.config import SmashRunConfig
from lightstride.generate.rows import ends_of
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import local_folder
from lightstride.recover.extrapolate import extrapolate
from lightstride.results import Numbers, markdown_table
from lightstride.smash.data.examples import Example
from lightstride.smash.judge.chains import collect_chains, summarize_chains
from lightstride.smash.model.eagle3 import Eagle3Head, default_taps
from lightstride.smash.model.headed import HEAD, open_head
from lightstride.smash.model.reading import BaseReader
from lightstride.smash.train.eagle3_learner import HeadLearning, LoweredHeadLoss
from lightstride.smash.train.eagle3_start import learning_parts, new_head
from lightstride.smash.train.hidden_cache import GIB, HiddenStateCache
from lightstride.smash.train.loop import plan_steps, train
from lightstride.smash.train.start import train_settings
from lightstride.training.checkpoint import Progress, TrainingFolder

FORECASTS = (1, 2, 4, 10)
"""For so many times the answers that were seen, tokens a step are foretold."""
LEAST_POINTS = 4
"""Evaluations that a forecast needs."""


def check_head(config: SmashRunConfig, base: PreTrainedModel) -> None:
    """Raise the user's mistakes that can be known before the base answers anything."""
    default_taps(adapter_for(base.config).geometry(base.config).num_blocks)
    if config.start_from:
        opened_head(config.start_from, base)


def opened_head(source: str, base: PreTrainedModel) -> Eagle3Head:
    """The head in a folder of its own, or in a checkpoint with one."""
    folder = local_folder(source)
    return open_head(folder / HEAD if (folder / HEAD).is_dir() else folder, base)


def learn_head(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Answers,
    dtype: torch.dtype,
) -> NewDrafter:
    """A head trained on these answers, and judged on the held-out ones."""
    head = head_to_train(config, base, tokenizer, answers.learn)
    reader = BaseReader(base, head.config.taps)
    progress = train_head(config, head, reader, answers, dtype)
    head = head.to(dtype).eval().requires_grad_(False)
    seen = answers_seen(config, answers.learn, progress)
    found = judged(config, head, reader, answers.held_out, JUDGE_TOKENS)
    numbers: Numbers = {
        **head_facts(head, base),
        "tokens_per_step": found,
        "training": {**training_facts(progress, answers), "answers_seen": seen},
        "forecast": foretold(seen),
    }

    def write(output: Path, record: Mapping[str, object]) -> None:
        if not is_saved(output):
            save_headed(head, base, config.model, tokenizer, output, record=record)

    return NewDrafter(numbers, chains_table(found), write)


def head_to_train(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learn: Sequence[Example],
) -> Eagle3Head:
    """A new head of the configured sizes, or the one to go on from, with weights of fp32."""
    if config.start_from:
        head = opened_head(config.start_from, base)
        if config.draft_window is not None:
            head.set_window(config.draft_window)
        return learning_parts(head)
    assert config.micro_vocab is not None
    head = new_head(
        base,
        learn,
        draft_vocab=config.micro_vocab,
        always=sorted(ends_of(base, tokenizer)),
        window=config.draft_window,
        seed=config.seed,
    )
    return learning_parts(head)


def train_head(
    config: SmashRunConfig,
    head: Eagle3Head,
    reader: BaseReader,
    answers: Answers,
    dtype: torch.dtype,
) -> Progress:
    """Train, looking at held-out answers now and then; how it went."""
    assert config.draft_steps is not None
    assert config.row_tokens is not None
    memory = None
    if HiddenStateCache.num_bytes(reader, answers.learn, prompts=True) <= config.cache_gib * GIB:
        memory = HiddenStateCache(reader, answers.learn, config.row_tokens, prompts=True)
    learning = HeadLearning(num_steps=config.draft_steps, loss=config.loss)

    def evaluate_now() -> Numbers:
        lowered = copy.deepcopy(head).to(dtype)
        return judged(config, lowered, reader, answers.held_out, MONITOR_TOKENS)

    return train(
        LoweredHeadLoss(head, reader, learning, dtype, memory),
        answers.learn,
        train_settings(config),
        TrainingFolder(Path(config.work_folder)),
        evaluate_now,
    )


def judged(
    config: SmashRunConfig,
    head: Eagle3Head,
    reader: BaseReader,
    held_out: Sequence[Example],
    tokens: int,
) -> Numbers:
    """Figures of the head's chains on held-out answers."""
    assert config.draft_steps is not None
    chains = collect_chains(
        head,
        reader,
        first_greedy(held_out, tokens),
        row_tokens=config.row_tokens or 1,
        num_steps=config.draft_steps,
    )
    return summarize_chains(chains)


def answers_seen(
    config: SmashRunConfig, learn: Sequence[Example], progress: Progress
) -> list[list[float]]:
    """The curve: answers that were read, again and again, and tokens a step after them."""
    training = train_settings(config)
    counts = [0]
    for work in plan_steps(learn, training, 0):
        if work.number >= progress.step:
            break
        counts.append(counts[-1] + sum(len(row) for plan in work.plans for row in plan))
    curve = []
    for evaluation in progress.evaluations:
        step, found = evaluation["step"], evaluation["lossless"]
        assert isinstance(step, int)
        assert isinstance(found, float)
        curve.append([float(counts[step]), found])
    return curve


def foretold(seen: Sequence[Sequence[float]]) -> list[Numbers] | None:
    """Tokens a step after more answers, by the curve; None where it has too few or does not rise.

    Fitted to log(tokens a step), as a loss is.
    """
    points = [(answers, found) for answers, found in seen if answers > 0]
    if len(points) < LEAST_POINTS:
        return None
    counts = [answers for answers, _ in points]
    losses = [-math.log(found) for _, found in points]
    told: list[Numbers] = []
    for times in FORECASTS:
        end = extrapolate(counts, losses, times * counts[-1])
        if end is None:
            return None
        told.append(
            {
                "answers": times * counts[-1],
                "tokens_per_step": 1 / end.perplexity,
                "low": 1 / end.high,
                "high": 1 / end.low,
            }
        )
    return told


def chains_table(found: Numbers) -> str:
    """Tokens per step on held-out answers, for a person."""
    agreement = found["agreement"]
    assert isinstance(agreement, list)
    rows = [["lossless, a chain", f"{found['lossless']:.2f}", f"{agreement[0]:.3f}"]]
    return markdown_table(["mode", "tokens per step", "first drafts right"], rows)
