"""A session without a model: what it says follows from the prompt and the seed, token by token.

It is the server's toy: instant, deterministic, with several tokens a step, hooks, stop strings,
probabilities, and a bound on its entries.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from helpers.toys import EOS, VOCAB_SIZE
from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.detokenize import TextStream
from lightstride.generate.session import FinishReason, Hooks, Interrupt, RowStep, TokenLogprob

LETTERS = b"abcdefghijklmnopqrstuvwxyz .,"


@dataclass
class FakeRow:
    """One answer."""

    key: str
    prompt: tuple[int, ...]
    settings: Settings
    hooks: Hooks
    stream: TextStream
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    finish: FinishReason | None = None

    @property
    def promised(self) -> int:
        return len(self.prompt) + self.settings.max_new_tokens


def wanted(prompt: Sequence[int], seed: int, place: int) -> int:
    """The token that an answer has at a place; at some places it ends."""
    digest = hashlib.sha256(f"{list(prompt)}:{seed}:{place}".encode()).digest()
    if place >= 20 and digest[1] < 8:
        return EOS
    return LETTERS[digest[0] % len(LETTERS)]


class FakeSession:
    """Rows that are answered together, one to three tokens a step."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, entries: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.entries = entries
        self.rows: dict[str, FakeRow] = {}
        self.num_steps = 0

    @property
    def keys(self) -> list[str]:
        return list(self.rows)

    @property
    def free_entries(self) -> int | None:
        if self.entries is None:
            return None
        return self.entries - sum(row.promised for row in self.rows.values())

    @property
    def promised_entries(self) -> int:
        return sum(row.promised for row in self.rows.values())

    def leave(self, entries: int) -> None:
        raise AssertionError("there are no others")

    @property
    def entry_bytes(self) -> int:
        return 1

    @property
    def allocated_bytes(self) -> int:
        return sum(row.promised for row in self.rows.values())

    def fits(self, num_prompt: int, settings: Settings) -> bool:
        free = self.free_entries
        return free is None or num_prompt + settings.max_new_tokens <= free

    def add(
        self,
        prompt: Sequence[int],
        settings: Settings,
        key: str,
        *,
        hooks: Hooks | None = None,
        copy: int = 0,
    ) -> None:
        if not self.fits(len(prompt), settings) and not self.rows:
            raise ConfigError("the prompt and its answer never fit the KV entries")
        stream = TextStream(self.tokenizer, settings.stop)
        self.rows[key] = FakeRow(key, tuple(prompt), settings, hooks or Hooks(), stream)

    def cancel(self, key: str) -> None:
        self.rows.pop(key, None)

    def step(self, interrupt: Interrupt | None = None) -> list[RowStep]:
        self.num_steps += 1
        said = [self.step_row(row) for row in self.rows.values()]
        self.rows = {key: row for key, row in self.rows.items() if row.finish is None}
        return said

    def step_row(self, row: FakeRow) -> RowStep:
        before = len(row.tokens)
        text = ""
        probabilities = []
        for _ in range(1 if row.settings.mode == "ar" else 1 + row.steps % 3):
            token, logprob = self.choose(row)
            row.tokens.append(token)
            probabilities.append(logprob)
            text += row.stream.feed(token)
            if row.stream.stopped or (token == EOS and not row.settings.ignore_end_tokens):
                row.finish = "stop"
            elif len(row.tokens) >= row.settings.max_new_tokens:
                row.finish = "length"
            if row.finish is not None:
                text += row.stream.flush()
                break
        row.steps += 1
        return RowStep(
            key=row.key,
            tokens=tuple(row.tokens[before:]),
            text=text,
            finish=row.finish,
            steps=row.steps,
            drafted=len(row.tokens) - row.steps,
            accepted=len(row.tokens) - row.steps,
            kv_entries=row.steps,
            logprobs=None if row.settings.logprobs is None else tuple(probabilities),
        )

    def choose(self, row: FakeRow) -> tuple[int, TokenLogprob]:
        """The likeliest token after the row's hook has had its say."""
        logits_V = torch.linspace(1, 0, VOCAB_SIZE)
        logits_V[wanted(row.prompt, row.settings.seed, len(row.tokens))] += 8
        logits_V[[EOS + 1, EOS + 2]] -= 20
        scores_V = logits_V.log_softmax(-1)
        if row.hooks.processor is not None:
            logits_V = row.hooks.processor(row.tokens, logits_V)
        token = int(logits_V.argmax())
        best = scores_V.topk(row.settings.logprobs or 0)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return token, TokenLogprob(token, float(scores_V[token]), top)
