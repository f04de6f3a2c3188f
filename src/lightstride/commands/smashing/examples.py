"""From sources of prompts to examples: asked, answered, scored, each stage resumable."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec
from transformers import PreTrainedTokenizerBase

from lightstride.commands.outputs import only_writer
from lightstride.config import SmashRunConfig
from lightstride.data.prompts import Prompt, read_prompts
from lightstride.distributed import barrier, rank
from lightstride.errors import DataError, ModelError, WorkError
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.generate import PlainDecoder
from lightstride.smash.data.answers import read_answers, write_answers
from lightstride.smash.data.examples import SCORES, Example, load_examples, split_held_out
from lightstride.smash.data.scores import score_answers
from lightstride.smash.data.self_prompts import self_prompts
from lightstride.smash.judge.held_out import is_greedy

SELF = "self"
TEMPERATURE = 0.8
LEAST_ANSWERS = 8
CHOSEN = "chosen.json"


MONITOR_TOKENS = 6000
"""Tokens of held-out answers that are looked at while training."""
JUDGE_TOKENS = 40000
"""Tokens of held-out answers that judge and calibrate at the end."""


class Chosen(msgspec.Struct):
    """The prompts of a run, by their ids; written anew each time."""

    ids: set[str]


@dataclass(frozen=True)
class Answers:
    """The base's answers: to learn from, and to judge by."""

    learn: Sequence[Example]
    held_out: Sequence[Example]
    hashed: str
    """A hash of all prompts and answers."""


def given_prompts(config: SmashRunConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of files and data sets; what is wrong with them is said before any work.

    Sources take turns, so that a small one is not lost beside a large one.  Where the model
    writes prompts too, no other source has more than an equal share, and it writes the rest.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template; smash needs a chat model")
    limit = config.num_prompts
    assert limit is not None
    sources = [source.strip() for source in config.prompts.split(",") if source.strip()]
    most = limit // len(sources) if SELF in sources else limit
    lists = [read_prompts([s], limit=most, seed=config.seed) for s in sources if s != SELF]
    in_turn = [p for turn in zip_longest(*lists) for p in turn if p is not None]
    prompts = list({prompt.id: prompt for prompt in in_turn}.values())[:limit]
    count = limit if SELF in sources else len(prompts)
    if count < LEAST_ANSWERS:
        raise DataError(f"{count} prompts are too few; give {LEAST_ANSWERS} or more")
    return prompts


def prepare_answers(
    config: SmashRunConfig, decoder: PlainDecoder, given: Sequence[Prompt]
) -> Answers:
    """The answers to all prompts; DataError where a part has too little to learn or to judge by."""
    examples = prepare_examples(config, decoder, given)
    learn, held_out = split_held_out(examples, config.held_out)
    if not learn or not held_out:
        raise DataError(
            f"of {len(examples)} answers {len(held_out)} are held out, which leaves no others or "
            "none to judge by; give more prompts, or another --held-out"
        )
    if max(len(each.answer_A) for each in learn) < 2:
        raise DataError("no answer has two tokens, so no draft can be learned; give other prompts")
    return Answers(learn, held_out, examples_hash(examples))


def prepare_examples(
    config: SmashRunConfig, decoder: PlainDecoder, given: Sequence[Prompt]
) -> list[Example]:
    """The examples of all prompts, made by the first process and read by all."""
    folder = Path(config.answers_folder)
    with only_writer(folder):
        write_examples(config, decoder, given, folder)
    chosen = read_sealed(Path(config.work_folder) / CHOSEN, Chosen, WorkError).ids
    examples = [e for e in load_examples(folder) if e.id in chosen and len(e.answer_A)]
    if len(examples) < LEAST_ANSWERS:
        raise DataError(
            f"{len(examples)} answers are too few; give {LEAST_ANSWERS} prompts or more"
        )
    return examples


def write_examples(
    config: SmashRunConfig, decoder: PlainDecoder, given: Sequence[Prompt], folder: Path
) -> None:
    """Ask, answer and score in the first process; the others wait for it."""
    if rank() == 0:
        prompts = all_prompts(config, decoder, folder, given)
        assert config.answer_tokens is not None
        write_answers(
            decoder,
            prompts,
            folder,
            max_new_tokens=config.answer_tokens,
            sampled_share=config.sampled_share,
            temperature=TEMPERATURE,
            batch_size=config.answer_batch,
            seed=config.seed,
            progress=True,
        )
        score_answers(decoder.model, read_answers(folder), folder / SCORES, progress=True)
        names = sorted(prompt.id for prompt in prompts)
        write_sealed(Path(config.work_folder) / CHOSEN, {"ids": names})
    barrier()


def all_prompts(
    config: SmashRunConfig, decoder: PlainDecoder, folder: Path, given: Sequence[Prompt]
) -> list[Prompt]:
    """The prompts that were given, and those that the model writes itself."""
    prompts = list(given)
    if SELF in [source.strip() for source in config.prompts.split(",")]:
        assert config.num_prompts is not None
        prompts += self_prompts(
            decoder.model,
            decoder.tokenizer,
            config.num_prompts - len(given),
            seed=config.seed,
            batch_size=config.answer_batch,
            folder=folder / SELF,
            progress=True,
        )
    return list({prompt.id: prompt for prompt in prompts}.values())


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of all prompts and answers."""
    found = hashlib.sha256()
    for each in examples:
        found.update(json.dumps([each.id, each.prompt_P.tolist(), each.answer_A.tolist()]).encode())
    return found.hexdigest()[:16]


def first_greedy(examples: Sequence[Example], tokens: int) -> list[Example]:
    """Greedy answers, in the order of their ids, up to so many tokens; at least one answer."""
    chosen: list[Example] = []
    for each in sorted(filter(is_greedy, examples), key=lambda e: e.id) or list(examples):
        tokens -= len(each.answer_A)
        if tokens < 0 and chosen:
            break
        chosen.append(each)
    return chosen
