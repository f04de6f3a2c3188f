"""Decoding a smashed model, in four modes from one checkpoint.

    trust     believe the stop head: the paper's.  One forward and one KV entry a segment.
    verify    check the drafted tokens in the forward that merges them.  One KV entry a segment.
    lossless  merge nothing; the micro decoder drafts and the base checks.  One KV entry a token,
              and the answer is the base's, token for token, also when sampling.
    ar        one token a step: the base alone.

Shapes: B rows, T taps, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.config.decoding import DEFAULT_CONFIDENCE, Settings
from lightstride.generate.cache import Storage
from lightstride.generate.decoder import Hooks, Step, count_entry, drop_finished, make_step
from lightstride.generate.forward import Forward, Sequences
from lightstride.generate.rows import Row, Rows
from lightstride.generate.sampler import Sampler
from lightstride.smash.decode.chain_drafter import Drafter
from lightstride.smash.decode.lossless import Branching
from lightstride.smash.decode.outcome import pad
from lightstride.smash.decode.verify import Merging, keep_prefixes, read_segments
from lightstride.smash.model.adapters import merged_at
from lightstride.smash.model.body import SmashBody

T = TypeVar("T")


class SmashDecoder:
    """Answers with a smashed model, several tokens a step."""

    def __init__(
        self,
        model: SmashBody,
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
        hooks = hooks or Hooks()
        rows = Rows(prompts, settings, self.model.base, self.tokenizer, hooks.stopper)
        return MacroSteps(self.model, self.storage).run(rows, settings, hooks)


class MacroSteps:
    """The loops over macro steps, for rows that were checked."""

    def __init__(self, model: SmashBody, storage: Storage) -> None:
        self.model = model
        self.storage: Storage = storage

    def run(self, rows: Rows, settings: Settings, hooks: Hooks) -> Iterator[Step]:
        """The steps, in the mode of the settings or the model's own."""
        mode = settings.mode or self.model.config.mode
        if settings.confidence is None:
            settings = replace(settings, confidence=DEFAULT_CONFIDENCE[mode])
        sampler = Sampler(settings, hooks.processor)
        if mode in ("verify", "lossless"):
            return self.checked(rows, sampler, merges=mode == "verify")
        return self.unchecked(rows, sampler, says_one=mode == "ar")

    def start(self, batch: Sequence[Row], scratch: int = 1) -> tuple[Sequences, Forward]:
        """The prompts in the base, nothing merged; `scratch` columns may be tried at the end."""
        capacity = max(len(r.prompt) for r in batch) + max(r.limit for r in batch) + scratch
        sequences = Sequences(self.model.base, self.storage, capacity)
        return sequences, sequences.prefill([row.prompt for row in batch], self.model.taps)

    def unchecked(self, rows: Rows, sampler: Sampler, *, says_one: bool) -> Iterator[Step]:
        """Trust and ar: what the micro decoder says is the answer."""
        batch = rows.active
        drafter = Drafter(self.model, sampler, rows.ends, checked=False)
        with torch.inference_mode():
            sequences, forward = self.start(batch, 2 * self.model.config.max_segment - 1)
            logits_BV, taps_BTD = last_of(forward)
        while True:
            with torch.inference_mode():
                first = sampler.choose(logits_BV, batch, [[]] * len(batch)).tolist()
                segments = [[token] for token in first]
                if not says_one:
                    segments = drafter.draft(batch, taps_BTD, first).segments
            yield make_step(rows, batch, segments, sequences)
            if not rows.active:
                return
            with torch.inference_mode():
                batch, kept_N = drop_finished(batch, sequences)
                segments = select(segments, kept_N)
                logits_BV, taps_BTD = self.merge_step(sequences, segments)
            count_entry(batch)

    def merge_step(
        self, sequences: Sequences, segments: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """One forward of the base over the merged segments: its logits and features after them."""
        tokens_BK, lengths_B = pad(segments, self.model.device)
        if tokens_BK.shape[1] == 1:
            return last_of(sequences.step(tokens_BK[:, 0], taps=self.model.taps))
        if self.model.config.gist:
            forward = read_segments(self.model, sequences, segments)
            taps_BTD = keep_prefixes(self.model, sequences, forward, lengths_B.tolist())
            rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
            return forward.logits_BQV[rows_B, lengths_B - 1], taps_BTD
        merged_BD = self.model.merge(tokens_BK, lengths_B)
        with merged_at((lengths_B > 1)[:, None]):
            forward = sequences.step(
                embeddings_BD=merged_BD, lengths_B=lengths_B, taps=self.model.taps
            )
        return last_of(forward)

    def checked(self, rows: Rows, sampler: Sampler, *, merges: bool) -> Iterator[Step]:
        """Verify and lossless: the base checks what the micro decoder says."""
        batch = rows.active
        way = (Merging if merges else Branching)(self.model, sampler, rows.ends)
        with torch.inference_mode():
            sequences, forward = self.start(batch, way.scratch)
            logits_BV, taps_BTD = last_of(forward)
            first = sampler.choose(logits_BV, batch, [[]] * len(batch)).tolist()
        yield make_step(rows, batch, [[token] for token in first], sequences)
        while rows.active:
            with torch.inference_mode():
                batch, kept_N = drop_finished(batch, sequences)
                first = select(first, kept_N)
                taps_BTD = taps_BTD if kept_N is None else taps_BTD[kept_N]
                checked = way.take_step(sequences, batch, taps_BTD, first)
            first, taps_BTD = checked.following, checked.taps_BTD
            for row, entries in zip(batch, checked.kv_entries, strict=True):
                row.kv_entries += entries * (row.finish_reason is None)
            proposed = [[*said, token] for said, token in zip(checked.accepted, first, strict=True)]
            yield make_step(rows, batch, proposed, sequences)


def last_of(forward: Forward) -> tuple[Tensor, Tensor]:
    """Logits (B, V) and features (B, T, D) of the last column."""
    taps_BTD = torch.stack([hidden[:, -1] for hidden in forward.hidden], dim=1)
    return forward.logits_BQV[:, -1], taps_BTD


def select(values: list[T], kept_N: Tensor | None) -> list[T]:
    """The entries of rows that were kept."""
    return values if kept_N is None else [values[index] for index in kept_N.tolist()]
