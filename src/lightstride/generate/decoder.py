"""What every decoder does: prompts in, steps out; and the plain one, a token a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.cache import Storage
from lightstride.generate.forward import Sequences
from lightstride.generate.rows import FinishReason, Row, Rows, Stopper
from lightstride.generate.sampler import Processor, Sampler


@dataclass(frozen=True)
class Step:
    """What one forward of the base model (a macro step) brought, row by row."""

    tokens: tuple[tuple[int, ...], ...]
    """Tokens added to each answer, after any cut; () for rows that had ended before."""
    text: tuple[str, ...]
    """Text that may be shown now; it lags behind the tokens while a stop string may begin."""
    finished: tuple[FinishReason | None, ...]
    """Why each row has ended, or None while it goes on."""
    kv_entries: tuple[int, ...]
    """KV entries stored for each answer so far, the prompt's left out."""
    entry_bytes: int
    """Bytes of one KV entry over all layers."""
    allocated_bytes: int
    """Bytes of the KV cache as it is, prompts and room to grow included."""


@dataclass(frozen=True)
class Hooks:
    """What transformers' `generate` wants to have a say in, besides the settings."""

    processor: Processor | None = None
    stopper: Stopper | None = None


class Decoder(Protocol):
    """A model that answers. Plain and pruned models have `PlainDecoder`, smashed ones their own."""

    @property
    def model(self) -> PreTrainedModel:
        """The model; called with `input_ids` it scores text as a plain language model."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    def steps(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[Step]:
        """Answer all prompts together, step by step, until every row has ended."""
        ...


class PlainDecoder:
    """Any causal language model of transformers, one token a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        storage: Storage = "dynamic",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.storage: Storage = storage

    def steps(
        self, prompts: Sequence[Sequence[int]], settings: Settings, hooks: Hooks | None = None
    ) -> Iterator[Step]:
        """Answer all prompts together, step by step, until every row has ended."""
        if settings.mode not in (None, "ar"):
            raise ConfigError(
                f"mode is {settings.mode!r}; a model that is not smashed has only 'ar'"
            )
        hooks = hooks or Hooks()
        rows = Rows(prompts, settings, self.model, self.tokenizer, hooks.stopper)
        return self.decode(rows, Sampler(settings, hooks.processor))

    def decode(self, rows: Rows, sampler: Sampler) -> Iterator[Step]:
        """The steps of rows that were checked."""
        batch = rows.active
        capacity = max(len(r.prompt) for r in batch) + max(r.limit for r in batch)
        sequences = Sequences(self.model, self.storage, capacity)
        with torch.inference_mode():
            forward = sequences.prefill([row.prompt for row in batch])
        while True:
            with torch.inference_mode():
                tokens_B = sampler.choose(forward.logits_BQV[:, -1], batch, [[]] * len(batch))
            yield make_step(rows, batch, [[token] for token in tokens_B.tolist()], sequences)
            if not rows.active:
                return
            with torch.inference_mode():
                batch, kept_N = drop_finished(batch, sequences)
                tokens_B = tokens_B if kept_N is None else tokens_B[kept_N]
                forward = sequences.step(tokens_B)
            count_entry(batch)


def make_step(
    rows: Rows, batch: Sequence[Row], proposed: Sequence[Sequence[int]], sequences: Sequences
) -> Step:
    """Accept what rows of the batch propose, and say what came of it."""
    proposed = [t if r.finish_reason is None else () for r, t in zip(batch, proposed, strict=True)]
    tokens, text = rows.extend(batch, proposed)
    return Step(
        tokens=tuple(tokens),
        text=tuple(text),
        finished=tuple(row.finish_reason for row in rows.all),
        kv_entries=tuple(min(row.kv_entries, len(row.tokens)) for row in rows.all),
        entry_bytes=sequences.cache.entry_bytes,
        allocated_bytes=sequences.cache.allocated_bytes,
    )


def count_entry(batch: Sequence[Row]) -> None:
    """Note that every row of the batch that goes on has one more KV entry."""
    for row in batch:
        row.kv_entries += row.finish_reason is None


def drop_finished(batch: list[Row], sequences: Sequences) -> tuple[list[Row], torch.Tensor | None]:
    """Shrink the batch once half of it has ended; what comes back: rows, and which they were."""
    active = [index for index, row in enumerate(batch) if row.finish_reason is None]
    if 2 * len(active) > len(batch):
        return batch, None
    kept_N = torch.tensor(active, device=sequences.model.device)
    sequences.select_rows(kept_N)
    return [batch[index] for index in active], kept_N
