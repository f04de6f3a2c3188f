"""From the flags of `lightstride recover` to rows of tokens: texts by weight, answers, held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.config import RecoverConfig
from lightstride.config.recover import split_weight
from lightstride.data.conversations import read_conversations
from lightstride.data.windows import Windows, packed_windows
from lightstride.errors import DataError
from lightstride.evaluate.loops import RUN, is_loop, repeats
from lightstride.generate.chat_template import chat_tokens, token_ids
from lightstride.recover.loop import Rows
from lightstride.smash.data.answers import HEADER, read_answers

LOOP_TOKENS = 16
"""So much of a loop is kept of an answer, from the third time on that a run of tokens comes."""

LOOP_WEIGHT = 6.0
"""What a token counts where one is ruled out: at 1 a model goes on to loop (`LOG.md`)."""


@dataclass(frozen=True)
class Answered:
    """A prompt by the chat template and what is said after it, the end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    ruled_out: tuple[int, ...]
    """At each token of the answer, one that must not stand there, or -1."""


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
    answered = [split_weight(source) for source in config.answers]
    total = sum(weight for _, weight in weighted + answered)
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
    for source, weight in answered:
        wanted = int(config.tokens * weight / total)
        rows.append(answer_rows(given_answers(source, tokenizer), source, config, wanted))
    tokens_NL = torch.cat([each.tokens_NL for each in rows])
    weights_NL = torch.cat([each.weights_NL for each in rows])
    ruled_out_NL = torch.cat([each.ruled_out_NL for each in rows])
    return Texts(Rows(tokens_NL, weights_NL, ruled_out_NL), held_out, tuple(sources))


def given_answers(source: str, tokenizer: PreTrainedTokenizerBase) -> list[Answered]:
    """A model's own answers, from a folder of smash's, or those that instruction data has.

    The latter by the chat template, with the token that ends a turn.
    """
    if (Path(source) / HEADER).exists():
        return [without_loop(each.prompt, each.answer) for each in read_answers(Path(source))]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    found = []
    for each in read_conversations(source):
        turns = [turn.as_dict() for turn in each.prompt.messages]
        answer = (*token_ids(tokenizer, each.answer, special=False), *end)
        prompt = tuple(chat_tokens(tokenizer, turns))
        found.append(Answered(prompt, answer, (-1,) * len(answer)))
    return found


def without_loop(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Answered:
    """A model's own answer, of whose loop only the beginning is kept, to learn not to go on.

    From whole loops a model learns above all to loop (`LOG.md`).  Ruled out are all tokens of the
    runs that come a third time, so that a sentence is left before it is begun again.
    """
    if not is_loop(answer):
        return Answered(prompt, answer, (-1,) * len(answer))
    again = repeats(answer)
    end = again.index(True) + LOOP_TOKENS
    ruled_out = [t if any(again[i : i + RUN]) else -1 for i, t in enumerate(answer[:end])]
    return Answered(prompt, answer[:end], tuple(ruled_out))


def answer_rows(
    answers: Sequence[Answered], source: str, config: RecoverConfig, wanted: int
) -> Rows:
    """Prompts and answers one after the other, cut into rows; what counts as --loss-on says.

    The distribution after a token counts where it predicts a token that does.  What would go on
    with a loop is ruled out there.
    """
    assert config.window is not None
    tokens: list[int] = []
    counts: list[float] = []
    ruled_out: list[int] = []
    for each in answers:
        tokens += [*each.prompt, *each.answer]
        ruled_out += [-1] * (len(each.prompt) - 1) + [*each.ruled_out, -1]
        of_prompt = float(config.loss_on == "all")
        of_answer = [LOOP_WEIGHT if token >= 0 else 1.0 for token in each.ruled_out]
        counts += [of_prompt] * (len(each.prompt) - 1) + of_answer + [of_prompt]
        if len(tokens) >= wanted:
            break
    num_rows = min(len(tokens), wanted) // config.window
    if not num_rows:
        raise DataError(
            f"{source} has {len(tokens):,} tokens; {config.window:,} are needed for a row"
        )
    return Rows(
        as_rows(tokens, num_rows, config.window).int(),
        as_rows(counts, num_rows, config.window),
        as_rows(ruled_out, num_rows, config.window).int(),
    )


def as_rows(values: Sequence[float], num_rows: int, length: int) -> Tensor:
    """The first values as rows, (N, L)."""
    return torch.tensor(values[: num_rows * length]).view(num_rows, length)
