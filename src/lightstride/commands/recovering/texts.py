"""From the flags of `lightstride recover` to rows of tokens: texts by weight, answers, held out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.config import RecoverConfig
from lightstride.config.recover import split_weight
from lightstride.data.conversations import read_conversations
from lightstride.data.windows import Windows, packed_windows
from lightstride.distributed import rank
from lightstride.errors import DataError
from lightstride.evaluate.loops import is_loop
from lightstride.generate.chat_template import chat_tokens, token_ids
from lightstride.recover.loop import Rows
from lightstride.smash.data.answers import HEADER, Answer, read_answers


class AnsweredPrompt(Protocol):
    """Tokens of a prompt and of what is said after it."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt by the chat template."""
        ...

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer, the end token included."""
        ...


@dataclass(frozen=True)
class GivenAnswer:
    """An answer that stands in instruction data."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """Rows to learn from, windows to judge by, and where they came from."""

    rows: Rows
    held_out: Windows
    sources: tuple[Windows, ...]

    @property
    def record(self) -> dict[str, object]:
        """What the result was made from, for `lightstride.json`."""
        documents = sorted(frozenset().union(*(each.documents for each in self.sources)))
        names = [each.source for each in self.sources]
        return {"recovery": {"source": names, "documents": documents}}


def read_texts(config: RecoverConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """The texts of a run; DataError where a source is missing or has no window of text."""
    assert config.tokens is not None
    assert config.window is not None
    assert config.held_out_tokens is not None
    weighted = [split_weight(source) for source in config.text]
    answered, answers_weight = split_weight(config.answers) if config.answers else ("", 0.0)
    total = sum(weight for _, weight in weighted) + answers_weight
    held_out = packed_windows(
        config.held_out or (weighted[0][0] if weighted else "pydoc"),
        tokenizer,
        num_tokens=config.held_out_tokens,
        window=config.window,
        seed=config.seed,
    )
    sources, rows = [], []
    for source, weight in weighted:
        wanted = int(config.tokens * weight / total)
        found = packed_windows(
            source,
            tokenizer,
            num_tokens=wanted,
            window=config.window,
            seed=config.seed,
            skip=held_out.documents,
            fewer=True,
        )
        sources.append(found)
        rows.append(Rows.alike(found.tokens_NL.int()))
    if answered:
        answers = given_answers(answered, tokenizer)
        wanted = int(config.tokens * answers_weight / total)
        rows.append(answer_rows(answers, config, wanted))
    tokens_NL = torch.cat([each.tokens_NL for each in rows])
    weights_NL = torch.cat([each.weights_NL for each in rows])
    return Texts(Rows(tokens_NL, weights_NL), held_out, tuple(sources))


def given_answers(source: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[AnsweredPrompt]:
    """The dense model's own answers of a folder of smash's, or those that instruction data has.

    The latter by the chat template, with the token that ends a turn.
    """
    if (Path(source) / HEADER).exists():
        return without_loops(read_answers(Path(source)), source)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [
        GivenAnswer(
            tuple(chat_tokens(tokenizer, [turn.as_dict() for turn in each.prompt.messages])),
            (*token_ids(tokenizer, each.answer, special=False), *end),
        )
        for each in read_conversations(source)
    ]


def without_loops(answers: Sequence[Answer], source: str) -> Sequence[Answer]:
    """Those that do not loop: from greedy answers that do, a model learns above all to loop."""
    kept = [each for each in answers if not is_loop(each.answer)]
    if len(kept) < len(answers) and rank() == 0:
        sys.stderr.write(
            f"lightstride: {len(answers) - len(kept):,} of {len(answers):,} answers in {source} "
            "loop and are left out\n"
        )
    return kept


def answer_rows(answers: Sequence[AnsweredPrompt], config: RecoverConfig, wanted: int) -> Rows:
    """Prompts and answers one after the other, cut into rows; what counts as --loss-on says.

    The distribution after a token counts where it predicts a token that does.
    """
    assert config.window is not None
    tokens: list[int] = []
    counts: list[float] = []
    for each in answers:
        tokens += [*each.prompt, *each.answer]
        of_prompt = float(config.loss_on == "all")
        counts += [of_prompt] * (len(each.prompt) - 1) + [1.0] * len(each.answer) + [of_prompt]
        if len(tokens) >= wanted:
            break
    num_rows = min(len(tokens), wanted) // config.window
    if not num_rows:
        raise DataError(
            f"{config.answers} has {len(tokens):,} tokens; {config.window:,} are needed for a row"
        )
    return Rows(
        as_rows(tokens, num_rows, config.window).int(), as_rows(counts, num_rows, config.window)
    )


def as_rows(values: Sequence[float], num_rows: int, length: int) -> Tensor:
    """The first values as rows, (N, L)."""
    return torch.tensor(values[: num_rows * length]).view(num_rows, length)
