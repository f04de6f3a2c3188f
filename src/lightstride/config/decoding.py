"""How an answer is decoded: the one definition of these settings, for flags, code and server."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal, Self, get_args

from tyro.conf import arg

from lightstride.config.base import OPTIONAL, Command
from lightstride.errors import ConfigError

Mode = Literal["lossless", "ar", "trust"]
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_CONFIDENCE: dict[Mode, float] = {"lossless": 0.03, "ar": 1.0, "trust": 0.9}
"""Default threshold by mode: low where a wrong guess wastes one column (lossless), high where a
wrong token is kept (trust)."""


@dataclass(frozen=True, kw_only=True)
class DecodingFlags:
    """Settings of an answer that are flags too. The default is greedy: the likeliest token."""

    mode: Annotated[
        Mode | None,
        arg(metavar="{lossless,ar,trust}", help_behavior_hint="(default: the model's own)"),
    ] = None
    """How a smashed model decodes: lossless drafts, one token a step, or, where it merges (smash
    --grafts paper), trusting its stop head."""
    confidence: Annotated[
        float | None, arg(metavar="P", help_behavior_hint="(default: the mode's)")
    ] = None
    """How sure a smashed model must be to draft one more token in a step, above 0 up to 1: by
    default 0.03 for a guess that lossless checks, 0.9 for trust."""
    lookup: int = 33
    """Most tokens of a step that lossless may copy from the text before, and then check; 0 is
    none."""
    tree: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: what pays)", constructor=int),
    ] = None
    """Most tokens that lossless checks at once for a prompt, as a tree of likely continuations."""
    exact: bool = False
    """Give the same bits whatever is checked or answered beside it, also in bfloat16: lossless then
    checks one branch. Refused where the machine rounds otherwise."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more random."""
    top_k: int = 0
    """Draw from so many likeliest tokens; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Leave out tokens with less than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer so far become less likely."""
    seed: int = 0
    """Seed of the draw: same seed, same answer."""
    stop: Annotated[tuple[str, ...], arg(help_behavior_hint=OPTIONAL)] = ()
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        finite = math.isfinite
        checks = {
            "mode": (self.mode in (None, *MODES), f"one of {', '.join(MODES)}"),
            "confidence": (
                self.confidence is None or 0 < self.confidence <= 1,
                "above 0 and at most 1",
            ),
            "tree": (self.tree is None or self.tree >= 1, "at least 1"),
            "lookup": (self.lookup >= 0, "0 or more"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0 and finite(self.temperature), "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 or more and at most 1"),
            "repetition_penalty": (
                self.repetition_penalty > 0 and finite(self.repetition_penalty),
                "above 0",
            ),
            "stop": (all(self.stop), "texts of at least one character"),
        }
        for name, (is_allowed, wanted) in checks.items():
            if not is_allowed:
                self.refuse(name, wanted)

    def refuse(self, name: str, wanted: str) -> None:
        """Raise ConfigError for a field, in the words of whoever set it: a flag's or a field's."""
        given = getattr(self, name)
        if isinstance(self, Command):
            flag = f"--{name.replace('_', '-')}"
            shown = repr(given) if isinstance(given, str) else given
            raise ConfigError(f"{flag} {shown} is not allowed: it must be {wanted}")
        raise ConfigError(f"{name} is {given!r}; it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class Settings(DecodingFlags):
    """How one prompt is answered; every row of a batch has its own."""

    ignore_end_tokens: bool = False
    """Whether an answer goes on after an end token, as when speed is measured."""
    logprobs: int | None = None
    """Report the base's log probability of every token, and so many likeliest tokens beside it;
    None reports none.  In the mode trust the base does not see every token: refused there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logprobs is not None and self.logprobs < 0:
            self.refuse("logprobs", "0 or more")

    @classmethod
    def of(cls, flags: DecodingFlags) -> Self:
        """The settings among a command's flags."""
        names = [field.name for field in fields(DecodingFlags)]
        return cls(**{name: getattr(flags, name) for name in names})

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.temperature == 0
