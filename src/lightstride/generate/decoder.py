"""Decoders: prompts in, answers out, by a small loop over a session."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.batch.cache import Storage
from lightstride.generate.batch_session import BatchSession
from lightstride.generate.modes import ColumnReader, OneToken
from lightstride.generate.rows import ends_of
from lightstride.generate.session import FinishReason, Hooks, Limits, RowStep, Session
from lightstride.memory.cache import Memory

NO_LIMITS = Limits()
ALL_AT_ONCE = Limits(chunk=sys.maxsize, together=sys.maxsize)
"""For prompts that are all there at the start: they are read in one forward."""


@dataclass(frozen=True)
class Step:
    """Result of one step of a session for a fixed list of rows."""

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
    near_ties: tuple[int, ...]
    """Greedy tokens of each answer so far that rounding might have made others."""


@dataclass(frozen=True)
class Generation:
    """One answer and what it cost."""

    text: str
    """The answer, without stop string and special tokens."""
    tokens: tuple[int, ...]
    """Its tokens, an end token or those of the stop string included."""
    steps: tuple[tuple[int, ...], ...]
    """The same tokens, grouped by the forward of the base model that brought them."""
    prompt_tokens: int
    kv_entries: int
    """KV entries stored for the answer (the last step's are not needed and not stored)."""
    kv_bytes: int
    """Bytes of those entries over all layers."""
    seconds: float
    """Wall time of the whole batch, up to this row's end."""
    finish_reason: FinishReason
    near_ties: int
    """Its greedy tokens that rounding might have made others: in bfloat16 another mode, or another
    number of rows, may answer otherwise from there on."""

    @property
    def macro_steps(self) -> int:
        """Forwards of the base model."""
        return len(self.steps)

    @property
    def tokens_per_step(self) -> float:
        return len(self.tokens) / len(self.steps)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds


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

    def session(self, limits: Limits = NO_LIMITS, *, with_text: bool = True) -> Session:
        """An open batch without rows; without text, rows have tokens alone."""
        ...

    def steps(
        self, prompts: Sequence[Sequence[int]], settings: Settings, hooks: Hooks | None = None
    ) -> Iterator[Step]:
        """Answer these prompts together, step by step, until every row has ended."""
        ...


class PlainDecoder:
    """Any causal language model of transformers, one token a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        storage: Storage = "dynamic",
        memory: Memory | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.storage: Storage = storage
        self.memory = memory

    def session(self, limits: Limits = NO_LIMITS, *, with_text: bool = True) -> Session:
        """An open batch without rows."""
        return BatchSession(
            self.model,
            {"ar": OneToken()},
            only_one_token,
            reader=ColumnReader(),
            tokenizer=self.tokenizer if with_text else None,
            ends=ends_of(self.model, self.tokenizer),
            limits=limits,
            storage=self.storage,
            memory=self.memory,
        )

    def steps(
        self, prompts: Sequence[Sequence[int]], settings: Settings, hooks: Hooks | None = None
    ) -> Iterator[Step]:
        """Answer these prompts together, step by step, until every row has ended."""
        return steps_of(self.session(ALL_AT_ONCE), prompts, settings, hooks)


def only_one_token(settings: Settings) -> Settings:
    """The settings with the mode of a model that is not smashed."""
    if settings.mode not in (None, "ar"):
        raise ConfigError(f"mode is {settings.mode!r}; a model that is not smashed has only 'ar'")
    return replace(settings, mode="ar")


def add_all(
    session: Session,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    hooks: Callable[[int], Hooks | None],
) -> list[str]:
    """Add prompts to a session, those that are the same as copies that differ; their keys."""
    if not prompts:
        raise ConfigError("no prompt was given; give at least one")
    copies: Counter[tuple[int, ...]] = Counter()
    for index, prompt in enumerate(prompts):
        copy = copies[tuple(prompt)]
        copies[tuple(prompt)] += 1
        session.add(prompt, settings, str(index), hooks=hooks(index), copy=copy)
    return [str(index) for index in range(len(prompts))]


def steps_of(
    session: Session,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    hooks: Hooks | None = None,
) -> Iterator[Step]:
    """The steps of a session that answers these prompts and no others."""
    keys = add_all(session, prompts, settings, lambda _: hooks)
    return run_steps(session, keys)


def run_steps(session: Session, keys: Sequence[str]) -> Iterator[Step]:
    """Step until all rows have ended."""
    last: dict[str, RowStep] = {}
    while session.keys:
        found = {row.key: row for row in session.step()}
        last |= found
        yield Step(
            tokens=tuple(found[key].tokens if key in found else () for key in keys),
            text=tuple(found[key].text if key in found else "" for key in keys),
            finished=tuple(last[key].finish if key in last else None for key in keys),
            kv_entries=tuple(last[key].kv_entries if key in last else 0 for key in keys),
            entry_bytes=session.entry_bytes,
            allocated_bytes=session.allocated_bytes,
            near_ties=tuple(last[key].near_ties if key in last else 0 for key in keys),
        )


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> list[Generation]:
    """Answer every prompt; `on_step` is called with each step as it comes (streaming)."""
    start = time.perf_counter()
    steps: list[Step] = []
    moments: list[float] = []
    for step in decoder.steps(prompts, settings):
        steps.append(step)
        moments.append(time.perf_counter() - start)
        if on_step is not None:
            on_step(step)
    return [answer_of_row(row, len(prompt), steps, moments) for row, prompt in enumerate(prompts)]


def answer_of_row(
    row: int, prompt_tokens: int, steps: Sequence[Step], moments: Sequence[float]
) -> Generation:
    """One row's answer out of all steps."""
    last = next(i for i, step in enumerate(steps) if step.finished[row] is not None)
    reason = steps[last].finished[row]
    assert reason is not None
    groups = tuple(step.tokens[row] for step in steps[: last + 1] if step.tokens[row])
    entries = steps[last].kv_entries[row]
    return Generation(
        text="".join(step.text[row] for step in steps[: last + 1]),
        tokens=tuple(token for group in groups for token in group),
        steps=groups,
        prompt_tokens=prompt_tokens,
        kv_entries=entries,
        kv_bytes=entries * steps[last].entry_bytes,
        seconds=moments[last],
        finish_reason=reason,
        near_ties=steps[last].near_ties[row],
    )
