"""A session: an open batch of a decoder, whose rows join, step and leave.

    session = decoder.session(limits)
    session.add(prompt, settings, "a")          # joins at the next step
    while session.keys:
        for row in session.step():              # one forward of the base for all rows
            print(row.key, row.text, end="")    # row.finish: why it ended; it has left

Every row has its own settings, hooks and random numbers, so that a request has the same answer
alone and among others (in fp32; in bf16 near ties may round differently).  A prompt is read in
chunks between the steps of the rows that already answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from lightstride.config.decoding import Settings

FinishReason = Literal["stop", "length"]
Processor = Callable[[Sequence[int], Tensor], Tensor]
"""(the answer so far with the current step's tokens, logits (V,)) -> logits (V,)."""
Stopper = Callable[[Sequence[int]], bool]
"""Answer so far -> whether it ends here; asked after every token."""
Interrupt = Callable[[], bool]
"""Whether what runs is to be given up."""


@dataclass(frozen=True)
class Hooks:
    """Functions of one row that act beside its settings."""

    processor: Processor | None = None
    stopper: Stopper | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what a session holds and reads at once."""

    entries: int | None = None
    """Most KV entries of all rows together, as `free_entries` counts them; None: no bound."""
    chunk: int = 512
    """Most tokens of one prompt read in a step."""
    long_chunk: int = 512
    """The same of a step that can be interrupted, where no row answers."""
    together: int = 8192
    """Most tokens, padding included, of all prompts read in a step."""
    keeps_prefixes: bool = False
    """Whether entries of rows that were read or have left are kept for prompts that begin the
    same, as far as `entries` has room for them."""


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability of one token by the base, before temperature and filters."""

    token: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, as many as `Settings.logprobs` asks for."""


@dataclass(frozen=True, kw_only=True)
class RowStep:
    """Result of one step for a row; counts are of the whole answer so far."""

    key: str
    tokens: tuple[int, ...]
    """Tokens added to the answer, after any cut; at least one."""
    text: str
    """Text that may be shown now; it lags behind the tokens while a stop string may begin."""
    finish: FinishReason | None
    """Why the row has ended and left, or None while it goes on."""
    steps: int
    """Forwards of the base so far, the prompt's counted as one."""
    drafted: int
    """Tokens drafted so far."""
    accepted: int
    """Those of them that became part of the answer."""
    kv_entries: int
    """KV entries stored for the answer so far, the prompt's left out."""
    cached: int = 0
    """Prompt tokens whose entries were there already."""
    near_ties: int = 0
    """Greedy tokens so far that rounding might have made others."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `tokens`, where the settings ask for them."""


class Session(Protocol):
    """Rows that are answered together; one caller at a time."""

    def add(
        self,
        prompt: Sequence[int],
        settings: Settings,
        key: str,
        *,
        hooks: Hooks | None = None,
        copy: int = 0,
    ) -> None:
        """Take a row in; it joins at the first step with room for it, in the order of adding.

        `copy` numbers answers to the same prompt that are to differ when sampled.  Raises
        ConfigError for a prompt that is empty, too long for the context or never fits the limits,
        for tokens outside the vocabulary, for a mode that the model does not have, for stop
        strings without a tokenizer, and for a key that is already there.
        """
        ...

    def cancel(self, key: str) -> None:
        """Drop a row before the next step; nothing more is heard of it.  Unknown keys do nothing,
        as the row may just have ended."""
        ...

    def step(self, interrupt: Interrupt | None = None) -> Sequence[RowStep]:
        """One forward of the base for all rows that answer, and one for the prompts being read.

        The result has an entry for each row that got tokens: none for rows still reading.
        `interrupt` says whether there is somebody new to take in.  It is asked again and again
        while a long piece of a prompt is read, and where it says so the step ends without it.
        """
        ...

    @property
    def keys(self) -> Sequence[str]:
        """Rows that have not ended: waiting, reading or answering."""
        ...

    def fits(self, num_prompt: int, settings: Settings) -> bool:
        """Whether a row of so many prompt tokens would join at the next step."""
        ...

    @property
    def free_entries(self) -> int | None:
        """KV entries, of the limit, that no row has been promised yet; None without a limit.

        Entries that are kept for later prompts count as free: they go where a row needs the room.

        A row is promised its prompt, its longest answer and what a step may try, all rows as much
        as the longest: the cache is a rectangle.
        """
        ...

    @property
    def promised_entries(self) -> int:
        """KV entries that rows have been promised."""
        ...

    def leave(self, entries: int) -> None:
        """Leave so many entries of the limit to others from now on."""
        ...

    @property
    def entry_bytes(self) -> int:
        """Bytes of one KV entry over all layers; 0 before the first step."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the KV cache as it is, room to grow included."""
        ...
