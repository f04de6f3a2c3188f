"""Decoding a smashed model, in three modes from one checkpoint.

    lossless  merge nothing; drafters propose and the base checks.  One KV entry a token, and the
              answer is the base's, token for token, also when sampling.
    ar        one token a step: the base alone.
    trust     believe the stop head: the paper's.  One forward and one KV entry a segment; for
              grafts with an embedder.

Shapes: N segments, K tokens of the longest, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.config.decoding import DEFAULT_CONFIDENCE, Settings
from lightstride.errors import ConfigError
from lightstride.generate.batch.cache import Storage, padded
from lightstride.generate.batch_session import BatchSession
from lightstride.generate.decoder import ALL_AT_ONCE, NO_LIMITS, Step, steps_of
from lightstride.generate.modes import ColumnReader, DecodingMode, OneToken
from lightstride.generate.rows import ends_of
from lightstride.generate.session import Hooks, Limits, Session
from lightstride.memory.cache import Memory
from lightstride.smash.decode.lossless import lossless_mode
from lightstride.smash.decode.trust import Trust
from lightstride.smash.drafters.guesses import Drafter
from lightstride.smash.drafters.lookups import LookupDrafter, LookupHistory
from lightstride.smash.drafters.micro_tree import MicroTree
from lightstride.smash.drafters.shared import SharedAnswers, SharedDrafter
from lightstride.smash.model.body import SmashBody


class SmashDecoder:
    """Answers with a smashed model, several tokens a step."""

    def __init__(
        self,
        model: SmashBody,
        tokenizer: PreTrainedTokenizerBase,
        *,
        storage: Storage = "dynamic",
        memory: Memory | None = None,
        shared: SharedAnswers | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.storage: Storage = storage
        self.memory = memory
        self.shared = shared
        """Earlier answers that lossless rows of all sessions look up."""

    def session(self, limits: Limits = NO_LIMITS, *, with_text: bool = True) -> Session:
        """An open batch without rows."""
        return smash_session(
            self.model,
            self.tokenizer if with_text else None,
            ends_of(self.model.base, self.tokenizer),
            limits=limits,
            storage=self.storage,
            memory=self.memory,
            shared=self.shared,
        )

    def steps(
        self, prompts: Sequence[Sequence[int]], settings: Settings, hooks: Hooks | None = None
    ) -> Iterator[Step]:
        """Answer these prompts together, step by step, until every row has ended."""
        return steps_of(self.session(ALL_AT_ONCE), prompts, settings, hooks)


def smash_session(
    model: SmashBody,
    tokenizer: PreTrainedTokenizerBase | None,
    ends: frozenset[int],
    *,
    limits: Limits = NO_LIMITS,
    storage: Storage = "dynamic",
    memory: Memory | None = None,
    shared: SharedAnswers | None = None,
) -> BatchSession:
    """An open batch of a smashed model, in any of its modes."""

    def merge(runs: Sequence[Sequence[int]]) -> Tensor:
        """One embedding a segment, shape (N, D)."""
        return model.merge(*padded(runs, model.device))

    def resolve(settings: Settings) -> Settings:
        """The settings with the model's own mode and the mode's own confidence."""
        mode = settings.mode or model.config.mode
        if mode not in model.config.modes:
            raise ConfigError(
                f"mode is {mode!r}; these grafts draft and do not merge: they have 'lossless' and "
                "'ar'"
            )
        if mode == "trust" and settings.logprobs is not None:
            raise ConfigError(
                "logprobs is given in the modes lossless and ar alone: in trust the base does not "
                "see every token before it is out"
            )
        if settings.exact and mode not in ("lossless", "ar"):
            raise ConfigError(f"exact is for the modes lossless and ar: {mode} answers otherwise")
        confidence = settings.confidence
        return replace(
            settings,
            mode=mode,
            confidence=DEFAULT_CONFIDENCE[mode] if confidence is None else confidence,
        )

    return BatchSession(
        model.base,
        smash_modes(model, memory, shared),
        resolve,
        reader=ColumnReader(merge),
        tokenizer=tokenizer,
        ends=ends,
        limits=limits,
        storage=storage,
        memory=memory,
        on_end=None if shared is None else shared.add,
    )


def smash_modes(
    model: SmashBody, memory: Memory | None, shared: SharedAnswers | None
) -> dict[str, DecodingMode]:
    """The model's modes; their rows share what was looked up, all sessions what was learned."""
    history = LookupHistory()
    drafters: list[Drafter] = [LookupDrafter(history), SharedDrafter(shared), MicroTree(model)]
    modes: dict[str, DecodingMode] = {
        "lossless": lossless_mode(model.base, drafters, model, memory),
        "ar": OneToken(),
    }
    if "trust" in model.config.modes:
        modes["trust"] = Trust(model, history)
    return modes
