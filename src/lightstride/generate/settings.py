"""What a user may ask of an answer: its length, its randomness, where it stops."""

from dataclasses import dataclass
from typing import Literal, get_args

from lightstride.errors import ConfigError

Mode = Literal["trust", "verify", "lossless", "ar"]
MODES: tuple[Mode, ...] = get_args(Mode)
CONFIDENCE: dict[Mode, float] = {"trust": 0.9, "verify": 0.3, "lossless": 0.03, "ar": 1.0}
"""What is asked unless told otherwise: where nobody checks a token, an error stays; in a segment it
costs the tokens behind it; in a tree it costs one column of a forward."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to continue a prompt. The default is greedy: the likeliest token, always."""

    max_new_tokens: int = 256
    """Most tokens to emit; never exceeded, and reached unless something else ends the answer."""
    temperature: float = 0.0
    """0 is greedy; above, logits are divided by it before sampling."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens that hold this much probability; 1 is all."""
    min_p: float = 0.0
    """Sample among tokens at least this likely relative to the likeliest; 0 is all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred in prompt or answer become less likely (CTRL's rule)."""
    seed: int = 0
    """Same seed, prompt and settings: same answer, alone or in a batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of its text."""
    ignore_end_tokens: bool = False
    """Whether an answer goes on after an end token, as when speed is measured."""
    mode: Mode | None = None
    """How a smashed model decodes; None is its own default. Other models know only "ar"."""
    confidence: float | None = None
    """How sure a smashed model must be to say one more token in the same step; 1 never does.
    Lossless: how likely a guess must be to be checked.  None is `CONFIDENCE` of the mode."""
    lookup: int = 8
    """Most tokens of a checked step that are taken from what prompt and answer said before; 0
    leaves all drafts to the micro decoder."""
    tree: int | None = None
    """Lossless: most tokens of a row that the base checks at once, in a tree of likely
    continuations; 1 drafts nothing.  None is 16, fewer from three rows on."""

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "stop": (all(self.stop), "strings that are not empty"),
            "mode": (self.mode in (None, *MODES), f"one of {', '.join(MODES)}"),
            "tree": (self.tree is None or self.tree >= 1, "at least 1"),
            "lookup": (self.lookup >= 0, "0 or more"),
            "confidence": (self.confidence is None or 0 < self.confidence <= 1, "in (0, 1]"),
        }
        for name, (is_allowed, range_text) in allowed.items():
            if not is_allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {range_text}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0
