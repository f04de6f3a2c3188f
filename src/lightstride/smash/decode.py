"""Decoding a smashed model, in four modes from one checkpoint.

    trust     believe the stop head: the paper's.  One forward and one KV entry a segment.
    verify    check the drafted tokens in the forward that merges them.  One KV entry a segment.
    lossless  merge nothing; the micro decoder drafts and the base checks.  One KV entry a token,
              and the answer (or its distribution) is the base's.
    ar        one token a step: the base alone.

Verify in one forward: the columns m_2..m_n are the candidates, the first k tokens merged, and
u_1..u_n the tokens as they are.  u_i sees the cache and u_1..u_i; m_k sees the cache and itself.
The logits at u check the draft; of all columns the one that holds the accepted prefix is kept.

Shapes: B rows, T taps, D hidden size, Q new columns, K tokens of a segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.generate.cache import Storage
from lightstride.generate.decoder import Hooks, Step, count_entry, drop_finished, make_step
from lightstride.generate.positions import slot_positions
from lightstride.generate.rows import Row, Rows
from lightstride.generate.sampler import Sampler
from lightstride.generate.sequences import Forward, Sequences
from lightstride.generate.settings import CHECKED, TRUSTED, Settings
from lightstride.smash.adapters import merged_at
from lightstride.smash.body import SmashBody
from lightstride.smash.check import check
from lightstride.smash.draft import Drafter

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
            sure = CHECKED if mode in ("verify", "lossless") else TRUSTED
            settings = replace(settings, confidence=sure)
        sampler = Sampler(settings, hooks.processor)
        if mode in ("verify", "lossless"):
            return self.checked(rows, sampler, merges=mode == "verify")
        return self.unchecked(rows, sampler, says_one=mode == "ar")

    def longest(self, settings: Settings, *, merges: bool) -> int:
        """Most tokens of a step that is looked up: what is merged has the embedder's limit."""
        if settings.lookup == 0:
            return 0
        most = self.model.config.max_segment
        return min(settings.lookup, most) if merges else settings.lookup

    def start(self, batch: Sequence[Row], longest: int = 0) -> tuple[Sequences, Forward]:
        """The prompts in the base, nothing merged."""
        scratch = max(2 * self.model.config.max_segment, longest)
        capacity = max(len(r.prompt) for r in batch) + max(r.limit for r in batch) + scratch
        sequences = Sequences(self.model.base, self.storage, capacity)
        return sequences, sequences.prefill([row.prompt for row in batch], self.taps)

    @property
    def taps(self) -> list[int]:
        taps = self.model.config.taps
        assert taps is not None
        return taps

    def unchecked(self, rows: Rows, sampler: Sampler, *, says_one: bool) -> Iterator[Step]:
        """Trust and ar: what the micro decoder says is the answer."""
        batch = rows.active
        drafter = Drafter(self.model, sampler, rows.ends, checked=False)
        with torch.inference_mode():
            sequences, forward = self.start(batch)
        while True:
            with torch.inference_mode():
                first = sampler.choose(forward.logits_BQV[:, -1], batch, [[]] * len(batch)).tolist()
                segments = [[token] for token in first]
                if not says_one:
                    taps_BTD = torch.stack([hidden[:, -1] for hidden in forward.hidden], dim=1)
                    segments = drafter.draft(batch, taps_BTD, first).segments
            yield make_step(rows, batch, segments, sequences)
            if not rows.active:
                return
            with torch.inference_mode():
                batch, kept_N = drop_finished(batch, sequences)
                segments = select(segments, kept_N)
                forward = self.merge_step(sequences, segments)
            count_entry(batch)

    def merge_step(self, sequences: Sequences, segments: Sequence[Sequence[int]]) -> Forward:
        """One forward of the base over the merged segments."""
        tokens_BK, lengths_B = pad(segments, self.model.device)
        if tokens_BK.shape[1] == 1:
            return sequences.step(tokens_BK[:, 0], taps=self.taps)
        merged_BD = self.model.merge(tokens_BK, lengths_B)
        with merged_at((lengths_B > 1)[:, None]):
            return sequences.step(embeddings_BD=merged_BD, lengths_B=lengths_B, taps=self.taps)

    def checked(self, rows: Rows, sampler: Sampler, *, merges: bool) -> Iterator[Step]:
        """Verify and lossless: the base checks what the micro decoder says."""
        batch = rows.active
        longest = self.longest(sampler.settings, merges=merges)
        drafter = Drafter(self.model, sampler, rows.ends, checked=True, longest=longest)
        with torch.inference_mode():
            sequences, forward = self.start(batch, longest)
            taps_BTD = torch.stack([hidden[:, -1] for hidden in forward.hidden], dim=1)
            first = sampler.choose(forward.logits_BQV[:, -1], batch, [[]] * len(batch)).tolist()
        yield make_step(rows, batch, [[token] for token in first], sequences)
        while rows.active:
            with torch.inference_mode():
                batch, kept_N = drop_finished(batch, sequences)
                first = select(first, kept_N)
                taps_BTD = taps_BTD if kept_N is None else taps_BTD[kept_N]
                draft = drafter.draft(batch, taps_BTD, first)
                run = self.run_merged if merges else self.run_apart
                forward = run(sequences, draft.segments)
                counts, first = check(sampler, batch, draft, forward.logits_BQV)
                keep = self.keep_merged if merges else self.keep_apart
                taps_BTD = keep(sequences, forward, counts)
            for row, count in zip(batch, counts, strict=True):
                row.kv_entries += (1 if merges else count) * (row.finish_reason is None)
            proposed = [
                [*segment[1:count], token]
                for segment, count, token in zip(draft.segments, counts, first, strict=True)
            ]
            yield make_step(rows, batch, proposed, sequences)

    def run_merged(self, sequences: Sequences, segments: Sequence[Sequence[int]]) -> Forward:
        """The forward of verify: columns m_2..m_n, then u_1..u_n; logits at u alone."""
        tokens_BK, _ = pad(segments, self.model.device)
        num_rows, width = tokens_BK.shape
        positions_BK = slot_positions(torch.ones_like(tokens_BK), sequences.position_B)
        embeddings_BKD = self.model.embed(tokens_BK)
        if width == 1:
            return sequences.forward(
                embeddings_BQD=embeddings_BKD, positions_BQ=positions_BK, taps=self.taps
            )
        prefixes = torch.arange(2, width + 1, device=tokens_BK.device)
        merged = self.model.merge(
            tokens_BK.repeat_interleave(width - 1, dim=0), prefixes.repeat(num_rows)
        ).view(num_rows, width - 1, -1)
        sees_QQ = torch.eye(2 * width - 1, dtype=torch.bool, device=tokens_BK.device)
        sees_QQ[width - 1 :, width - 1 :] = sees_QQ.new_ones(width, width).tril()
        is_merged = torch.arange(2 * width - 1, device=tokens_BK.device) < width - 1
        with merged_at(is_merged.expand(num_rows, -1)):
            return sequences.forward(
                embeddings_BQD=torch.cat([merged, embeddings_BKD], dim=1),
                positions_BQ=torch.cat([positions_BK[:, 1:], positions_BK], dim=1),
                sees_BQQ=sees_QQ[None],
                taps=self.taps,
                num_logits=width,
            )

    def keep_merged(self, sequences: Sequences, forward: Forward, counts: Sequence[int]) -> Tensor:
        """Keep the column of each row's accepted prefix; its features, shape (B, T, D)."""
        width = forward.logits_BQV.shape[1]
        counts_B = torch.tensor(counts, device=self.model.device)
        columns_B = torch.where(counts_B > 1, counts_B - 2, width - 1)
        sequences.keep_one(columns_B)
        sequences.advance(counts_B)
        return pick(forward, columns_B)

    def run_apart(self, sequences: Sequences, segments: Sequence[Sequence[int]]) -> Forward:
        """The forward of lossless: the tokens as they are, each row behind its own entries."""
        tokens_BK, _ = pad(segments, self.model.device)
        width = tokens_BK.shape[1]
        return sequences.forward(
            tokens_BQ=tokens_BK,
            positions_BQ=slot_positions(torch.ones_like(tokens_BK), sequences.position_B),
            slots_BQ=sequences.used_B[:, None] + torch.arange(width, device=tokens_BK.device),
            taps=self.taps,
            num_logits=width,
        )

    def keep_apart(self, sequences: Sequences, forward: Forward, counts: Sequence[int]) -> Tensor:
        """Keep each row's accepted tokens; the features of the last, shape (B, T, D)."""
        counts_B = torch.tensor(counts, device=self.model.device)
        places_Q = torch.arange(forward.logits_BQV.shape[1], device=self.model.device)
        slots_BQ = sequences.used_B[:, None] + places_Q
        sequences.commit_rows(slots_BQ, places_Q < counts_B[:, None])
        sequences.advance(counts_B)
        return pick(forward, counts_B - 1)


def pad(segments: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Segments as a tensor (B, K), junk behind their ends, and their lengths (B,)."""
    width = max(map(len, segments))
    tokens_BK = torch.tensor([[*s, *[0] * (width - len(s))] for s in segments], device=device)
    return tokens_BK, torch.tensor([len(s) for s in segments], device=device)


def pick(forward: Forward, columns_B: Tensor) -> Tensor:
    """The features of one column a row, shape (B, T, D)."""
    rows_B = torch.arange(len(columns_B), device=columns_B.device)
    return torch.stack([hidden[rows_B, columns_B] for hidden in forward.hidden], dim=1)


def select(values: list[T], kept_N: Tensor | None) -> list[T]:
    """The entries of rows that were kept."""
    return values if kept_N is None else [values[index] for index in kept_N.tolist()]
