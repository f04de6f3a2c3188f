"""Chains of drafts on given answers, counted as an engine counts them, and at long contexts.

An engine that drafts chains of k tokens knows the first token of an answer from the prompt.  Each
forward after that checks at most k drafts, no more than the answer has room for beside the base's
own next token, and goes on behind those that were right.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.smash.data.examples import Example
from lightstride.smash.judge.chains import collect_chains
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.reading import BaseReader

Tokens = tuple[int, ...]
Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Counts:
    """Forwards after the first token, drafts that they checked, and those that were right."""

    forwards: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.forwards + other.forwards,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )

    def as_dict(self) -> dict[str, float]:
        """For JSON; without a draft its shares are 0."""
        return {
            "drafts": self.drafted,
            "accepted": self.accepted,
            "accepted_over_drafted": round(self.accepted / max(1, self.drafted), 4),
            "tokens_per_step": round(1 + self.accepted / max(1, self.forwards), 4),
        }


def walk(runs: Sequence[int], most: int) -> Counts:
    """Counts on one answer; `runs` are the right drafts behind each of its tokens."""
    at, found = 0, Counts()
    while at < len(runs) - 1:
        length = min(most, len(runs) - at - 2)
        right = min(runs[at], length)
        found += Counts(1, length, right)
        at += 1 + right
    return found


@torch.inference_mode()
def runs_of(
    head: Eagle3Head, base: BaseReader, prompt: Sequence[int], answer: Sequence[int], most: int
) -> list[int]:
    """Right drafts, up to `most`, behind each token of an answer that is the base's own."""
    told = torch.tensor(answer)
    example = Example("", "", torch.tensor(prompt), told, torch.zeros(len(told)), told)
    size = len(prompt) + len(answer)
    chains = collect_chains(head, base, [example], row_tokens=size, num_steps=most)
    found: list[int] = chains.agrees_NJ.long().cumprod(-1).sum(-1).tolist()
    return found


def count_chains(
    head: Eagle3Head,
    base: BaseReader,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    most: int,
) -> Counts:
    """Counts on several answers."""
    pairs = zip(prompts, answers, strict=True)
    each = [walk(runs_of(head, base, *pair, most), most) for pair in pairs if len(pair[1])]
    return sum(each, Counts())


@torch.inference_mode()
def lead_where_parted(
    model: PreTrainedModel, prompt: Tokens, one: Tokens, other: Tokens
) -> float | None:
    """By how much the base prefers one token where two answers part; None where they do not."""
    pairs = itertools.zip_longest(one, other)
    place = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return None
    if place >= min(len(one), len(other)):
        return torch.inf
    logits_V = model(torch.tensor([[*prompt, *one[:place]]])).logits[0, -1]
    return float(logits_V.max() - logits_V[[one[place], other[place]]].min())


def conversation(
    decoder: PlainDecoder, turns: Sequence[Turn], question: str, length: int
) -> Tokens:
    """The question behind as many turns, over and over, as fit into so many tokens."""
    messages = [{"role": "user", "content": question}]
    found: Tokens = ()
    for index in range(10_000):
        prompt = tuple(chat_tokens(decoder.tokenizer, messages))
        if len(prompt) > length and found:
            break
        found = prompt
        asked, answered = turns[index % len(turns)]
        messages[:0] = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    return found


def at_contexts(
    decoder: PlainDecoder,
    head: Eagle3Head,
    turns: Sequence[Turn],
    lengths: Sequence[int],
    *,
    asked: int,
    most: int,
    new_tokens: int,
) -> dict[str, dict[str, float]]:
    """Chains on the first turns' questions, asked at the end of conversations of these lengths.

    What stands before one are the other turns, in their order after its own.
    """
    reader = BaseReader(decoder.model, head.config.taps)
    found = {}
    for length in lengths:
        prompts = [
            conversation(decoder, [*turns[at + 1 :], *turns[:at]], question, length)
            for at, (question, _) in enumerate(turns[:asked])
        ]
        settings = Settings(max_new_tokens=new_tokens)
        answers = [generate(decoder, [prompt], settings)[0].tokens for prompt in prompts]
        counts = count_chains(head, reader, prompts, answers, most)
        mean = sum(map(len, prompts)) / len(prompts)
        found[str(length)] = {"prompt_tokens": round(mean, 1), **counts.as_dict()}
    return found
