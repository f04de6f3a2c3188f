"""One row of a batch while it is answered: its tokens, its text, and the cut that ends it.

Tokens are accepted one at a time, whatever number of them a forward brought, so an end token, a
stop string or the length limit cuts at exactly the same token in every decoder.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.detokenize import TextStream
from lightstride.generate.sampling import row_key
from lightstride.models.end_tokens import end_tokens

FinishReason = Literal["stop", "length"]
Stopper = Callable[[Sequence[Sequence[int]]], Sequence[bool]]
"""Given every row's answer so far, says which rows end here (transformers' stopping criteria)."""


class Row:
    """One prompt and the answer to it, as far as it goes."""

    def __init__(self, index: int, prompt: Sequence[int], key: bytes, limit: int) -> None:
        self.index = index
        self.prompt = tuple(prompt)
        self.key = key
        self.limit = limit
        self.tokens: list[int] = []
        self.kv_entries = 0
        self.finish_reason: FinishReason | None = None
        self.stream: TextStream | None = None

    def accept(self, token: int, ends: frozenset[int]) -> str:
        """Add one token; what comes back is the text that may be shown now."""
        self.tokens.append(token)
        text = self.stream.feed(token) if self.stream is not None else ""
        if token in ends or (self.stream is not None and self.stream.stopped):
            return text + self.finish("stop")
        if len(self.tokens) >= self.limit:
            return text + self.finish("length")
        return text

    def finish(self, reason: FinishReason) -> str:
        """End the answer; what comes back is the text that was held back."""
        assert self.finish_reason is None
        self.finish_reason = reason
        return self.stream.flush() if self.stream is not None else ""


class Rows:
    """All rows of a batch; knows what ends an answer."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        stopper: Stopper | None = None,
        ends: frozenset[int] | None = None,
    ) -> None:
        context = context_length(model)
        check_prompts(prompts, context, model.config.vocab_size)
        if settings.stop and tokenizer is None:
            raise ConfigError("stop strings were given, but there is no tokenizer to read them")
        ends = ends_of(model, tokenizer) if ends is None else ends
        self.ends = frozenset() if settings.ignore_end_tokens else ends
        self.stopper = stopper
        self.all = []
        copies: Counter[tuple[int, ...]] = Counter()
        for index, prompt in enumerate(prompts):
            key = row_key(settings.seed, prompt, copies[tuple(prompt)])
            copies[tuple(prompt)] += 1
            limit = settings.max_new_tokens
            limit = limit if context is None else min(limit, context - len(prompt))
            row = Row(index, prompt, key, limit)
            if tokenizer is not None:
                row.stream = TextStream(tokenizer, settings.stop)
            self.all.append(row)

    @property
    def active(self) -> list[Row]:
        """The rows that are not finished, in order."""
        return [row for row in self.all if row.finish_reason is None]

    def extend(
        self, rows: Sequence[Row], proposed: Sequence[Sequence[int]]
    ) -> tuple[list[tuple[int, ...]], list[str]]:
        """Accept what a forward proposed for `rows`, up to each row's cut.

        What comes back, one entry for every row of the batch: the tokens kept, the text to show.
        """
        before = [len(row.tokens) for row in self.all]
        texts = [""] * len(self.all)
        for micro in range(max(map(len, proposed), default=0)):
            for row, tokens in zip(rows, proposed, strict=True):
                if row.finish_reason is None and micro < len(tokens):
                    texts[row.index] += row.accept(tokens[micro], self.ends)
            self.ask_stopper(texts)
        kept = [tuple(row.tokens[n:]) for row, n in zip(self.all, before, strict=True)]
        return kept, texts

    def ask_stopper(self, texts: list[str]) -> None:
        """End the rows that the stopper wants ended, and show what their text held back."""
        if self.stopper is None:
            return
        for row, ends in zip(self.all, self.stopper([r.tokens for r in self.all]), strict=True):
            if ends and row.finish_reason is None:
                texts[row.index] += row.finish("stop")


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every end token that the model config, the generation config or the tokenizer names."""
    return frozenset(end_tokens(model.config, model.generation_config, tokenizer))


def context_length(model: PreTrainedModel) -> int | None:
    """Most positions the model knows, or None if its config does not say."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def check_prompts(prompts: Sequence[Sequence[int]], context: int | None, vocab_size: int) -> None:
    """Refuse prompts that are empty, longer than the context, or not of this vocabulary."""
    if not prompts:
        raise ConfigError("no prompt was given; give at least one")
    for prompt in prompts:
        if len(prompt) == 0:
            raise ConfigError("the prompt is empty; it must have at least one token")
        if context is not None and len(prompt) >= context:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens; the model's context is {context}, "
                f"so a prompt may have at most {context - 1}"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ConfigError(
                f"the prompt has token {min(prompt) if min(prompt) < 0 else max(prompt)}; "
                f"the model's vocabulary is 0 to {vocab_size - 1}"
            )
