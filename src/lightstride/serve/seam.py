"""Values that cross between the API and the engine, and what the API asks of a model.

The API knows no tensor: an `Ask` goes in, `News` come out, a step of the base model at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Mode = Literal["lossless", "ar", "trust"]
Finish = Literal["stop", "length"]
Messages = Sequence[Mapping[str, object]]
Tools = Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that is asked for, everything decided."""

    prompt: tuple[int, ...]
    max_tokens: int
    """Most tokens of the answer; prompt and answer together fit the context."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_end_tokens: bool = False
    top_logprobs: int | None = None
    """How many alternatives a token is reported with; None reports nothing."""
    grammar: str | None = None
    """What `Model.compile` gave; the answer has to be of this grammar."""
    mode: Mode | None = None
    confidence: float | None = None
    exact: bool = False
    """Whether it is to have the same bits whatever is checked or answered beside it."""
    kv: float = 1.0
    """Budget of the memory plan: the share of KV entries that is kept."""


@dataclass(frozen=True)
class Scored:
    """A token, and how likely the model thought it and the likeliest ones, in nats."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class News:
    """What one step brought to one answer."""

    tokens: tuple[int, ...]
    text: str
    """Text that may be shown now."""
    kv_entries: int
    """KV entries stored for the answer so far."""
    finish: Finish | None = None
    scored: tuple[Scored, ...] | None = None
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were there already."""


class Ticket(Protocol):
    """An answer on its way."""

    async def news(self) -> Sequence[News]:
        """The next steps, all that have come; none after the last. ApiError where it fails."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more: its row is free at the next step."""
        ...


@dataclass(frozen=True)
class Facts:
    """A model as clients may know it."""

    name: str
    created: int
    context: int
    vocab_size: int
    modes: tuple[Mode, ...]
    default_mode: Mode
    kv_budgets: tuple[float, ...]
    """Shares of the KV entries that it can be asked to keep; (1.0,) keeps all."""
    default_kv: float
    has_chat: bool
    """Whether its tokenizer has a chat template."""


@dataclass(frozen=True)
class Load:
    """How busy a model is."""

    running: int
    waiting: int
    free_entries: int
    shared_bytes: int = 0
    """Bytes held for lookups in earlier answers."""
    shared_tokens: int = 0
    """Tokens of those answers."""


class Model(Protocol):
    """A model that is served. Whatever takes time happens in threads of its own."""

    @property
    def facts(self) -> Facts:
        """What clients may know."""
        ...

    @property
    def load(self) -> Load:
        """How busy it is now."""
        ...

    async def chat(self, messages: Messages, tools: Tools | None) -> tuple[int, ...]:
        """Tokens of a conversation up to the answer; ApiError where the template cannot say it."""
        ...

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Tokens of a text, with or without those that are put around it."""
        ...

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        ...

    async def compile(self, schema: str) -> str:
        """The grammar of a JSON schema; ApiError where it has none that can be used."""
        ...

    async def know_pieces(self) -> None:
        """Make `piece` quick; it may take a second, once."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        ...

    def submit(self, asks: Sequence[Ask]) -> list[Ticket]:
        """Queue answers, all or none; ApiError 429 where the queue is full."""
        ...

    def close(self) -> None:
        """End all answers with an error, and all threads."""
        ...
