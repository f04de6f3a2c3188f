"""Decoding a base with a draft head: lossless trees by the head and by what was there before."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import DEFAULT_CONFIDENCE, Settings
from lightstride.errors import ConfigError
from lightstride.generate.batch.cache import Storage
from lightstride.generate.batch_session import BatchSession
from lightstride.generate.decoder import ALL_AT_ONCE, NO_LIMITS, Step, steps_of
from lightstride.generate.modes import ColumnReader, OneToken
from lightstride.generate.rows import ends_of
from lightstride.generate.session import Hooks, Limits, Session
from lightstride.memory.cache import Memory
from lightstride.smash.decode.lossless import lossless_mode
from lightstride.smash.drafters.eagle3_tree import Eagle3Tree
from lightstride.smash.drafters.guesses import Drafter
from lightstride.smash.drafters.lookups import LookupDrafter, LookupHistory
from lightstride.smash.drafters.shared import SharedAnswers, SharedDrafter
from lightstride.smash.model.eagle3 import Eagle3Head


class HeadedDecoder:
    """Answers with a base, token for token its own, several tokens a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Eagle3Head,
        tokenizer: PreTrainedTokenizerBase,
        *,
        storage: Storage = "dynamic",
        memory: Memory | None = None,
        shared: SharedAnswers | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.tokenizer = tokenizer
        self.storage: Storage = storage
        self.memory = memory
        self.shared = shared
        """Earlier answers that rows of all sessions look up."""

    def session(self, limits: Limits = NO_LIMITS, *, with_text: bool = True) -> Session:
        """An open batch without rows."""
        lookups = LookupDrafter(LookupHistory())
        tree = Eagle3Tree(self.head, self.model.get_input_embeddings())
        drafters: list[Drafter] = [lookups, SharedDrafter(self.shared), tree]
        lossless = lossless_mode(self.model, drafters, self.head, self.memory)
        return BatchSession(
            self.model,
            {"lossless": lossless, "ar": OneToken()},
            lossless_or_one,
            reader=ColumnReader(),
            tokenizer=self.tokenizer if with_text else None,
            ends=ends_of(self.model, self.tokenizer),
            limits=limits,
            storage=self.storage,
            memory=self.memory,
            on_end=None if self.shared is None else self.shared.add,
        )

    def steps(
        self, prompts: Sequence[Sequence[int]], settings: Settings, hooks: Hooks | None = None
    ) -> Iterator[Step]:
        """Answer these prompts together, step by step, until every row has ended."""
        return steps_of(self.session(ALL_AT_ONCE), prompts, settings, hooks)


def lossless_or_one(settings: Settings) -> Settings:
    """The settings with a mode of a model with a draft head, and the mode's own confidence."""
    mode = settings.mode or "lossless"
    if mode not in ("lossless", "ar"):
        raise ConfigError(
            f"mode is {mode!r}; a model with a draft head merges nothing: it has 'lossless' and "
            "'ar'"
        )
    confidence = settings.confidence
    return replace(
        settings,
        mode=mode,
        confidence=DEFAULT_CONFIDENCE[mode] if confidence is None else confidence,
    )
