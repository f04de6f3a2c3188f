"""A memory plan: for every block and KV head, what it keeps of tokens older than a window.

A head keeps the first tokens ("sinks") and its window always.  Of what is between it keeps all,
one token of every n, or nothing: the last of every n, or as many of each chunk as that, those with
the best score (`scores.py`).  The last of n tokens may count as several of them in the attention:
the logarithm of that number is added to its logit.  Windows move on in chunks: the tokens before

    border(q) = chunk * floor((q + 1 - window) / chunk),   at least 0,

are old for the query at position q, so that a window holds `window` to `window + chunk - 1`
tokens, the query's own among them.  Up to `window` tokens nothing is old, and the answer is
exactly the one of the full cache.

A head may also *slide*, as sliding windows of other engines do: it keeps the last `window` tokens,
the query's own among them, moves on token by token, and has no sinks.

Costs are exact: `entries(context)` is what a cache holds of a text of so many tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from lightstride.errors import ModelError

CHUNK = 16
SINKS = 4
EVERY = (2, 4, 8, 16)
"""Numbers of old tokens that may leave one entry; each divides a chunk."""

RULE = re.compile(r"([0-9]{1,9})/(?:(slide)|(best)?([0-9]{1,9})(?:x([0-9]{1,9}))?)")
"""What is written of a head that does not keep all: window, choice, every, weight."""
Choice = Literal["last", "best", "slide"]
"""Which of an old chunk's tokens stay: the last of every n, those with the best scores, or, where
the window slides, not even the first of the text."""


@dataclass(frozen=True, order=True)
class Keep:
    """What a head keeps: one token of `every` n older than `window`; 0 is none, 1 is all."""

    every: int = 1
    window: int = 0
    weight: int = 1
    """Tokens that an old entry counts as in the attention; the first tokens count as one."""
    choice: Choice = "last"

    def __post_init__(self) -> None:
        if self.every not in (0, 1, *EVERY):
            raise ModelError(
                f"a head keeps 1 of {self.every}; it may keep 1 of 1, 2, 4, 8 or 16, or 0"
            )
        if self.window < 0 or (self.every == 1) != (self.window == 0):
            raise ModelError(
                f"a window of {self.window} tokens is not allowed: 1 or more, 0 for all"
            )
        if not 1 <= self.weight <= max(1, self.every):
            raise ModelError(f"an entry for {self.every} tokens cannot count as {self.weight}")
        if self.choice == "best" and (self.every not in EVERY or self.weight > 1):
            raise ModelError(
                f"the best of {self.every} tokens cannot stay and count as {self.weight}: it is "
                "the best of 2, 4, 8 or 16, and counts as 1"
            )
        if self.choice == "slide" and self.every:
            raise ModelError(f"a window that slides keeps none of {self.every} old tokens")

    def __str__(self) -> str:
        if self.every == 1:
            return "all"
        if self.choice == "slide":
            return f"{self.window}/slide"
        best = "best" if self.choice == "best" else ""
        return f"{self.window}/{best}{self.every}" + (f"x{self.weight}" if self.weight > 1 else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read back what `str` wrote; ModelError on anything else."""
        if text == "all":
            return cls()
        found = RULE.fullmatch(text)
        if found is None:
            raise ModelError(
                f"a head keeps {text!r}; it must be all or WINDOW/EVERY, like 128/4, 128/4x2, "
                "128/best4 or 128/slide"
            )
        window, slide, best, every, weight = found.groups()
        if slide:
            return cls(0, int(window), choice="slide")
        return cls(int(every), int(window), int(weight or 1), "best" if best else "last")

    @property
    def step(self) -> int:
        """Tokens by which the window moves on."""
        return 1 if self.choice == "slide" else CHUNK

    def first(self, sinks: int) -> int:
        """How many of the first tokens it keeps, of a plan with so many sinks."""
        return 0 if self.choice == "slide" else sinks

    def border(self, query: int) -> int:
        """The first position that is not old for the query at this position."""
        if self.every == 1:
            return 0
        return max(0, (query + 1 - self.window) // self.step * self.step)

    def keeps(self, position: int, sinks: int) -> bool:
        """Whether an old token's entry stays; of chosen ones, whether one stands in its place."""
        if position < self.first(sinks) or self.every == 1:
            return True
        return self.every > 0 and position % self.every == self.every - 1

    def entries(self, context: int, sinks: int) -> int:
        """Entries held of a text of so many tokens, before the next one is read."""
        border = self.border(context)
        old = sum(self.keeps(position, sinks) for position in range(border))
        return old + context - border


ALL = Keep()


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What every KV head of every block keeps; a block without attention has no heads."""

    blocks: tuple[tuple[Keep, ...], ...]
    head_dim: int
    sinks: int = SINKS
    base: str = field(default="")
    """Fingerprint of the model it was made for."""

    @classmethod
    def full(cls, heads: Sequence[int], head_dim: int, base: str = "") -> Self:
        """The plan of the full cache; `heads` are the KV heads of each block."""
        blocks = tuple((ALL,) * count for count in heads)
        return cls(blocks=blocks, head_dim=head_dim, base=base)

    @property
    def exact_up_to(self) -> int | None:
        """Tokens up to which the answer is the full cache's; None is any number."""
        windows = [keep.window for block in self.blocks for keep in block if keep != ALL]
        return min(windows) if windows else None

    @property
    def is_scored(self) -> bool:
        """Whether some head chooses what it keeps by scores."""
        return any(keep.choice == "best" for block in self.blocks for keep in block)

    @property
    def num_heads(self) -> int:
        """KV heads of all blocks."""
        return sum(map(len, self.blocks))

    def entries(self, context: int) -> int:
        """Entries, one a KV head and token, that a text of so many tokens leaves in the cache."""
        counts: dict[Keep, int] = {}
        for block in self.blocks:
            for keep in block:
                counts[keep] = counts.get(keep, 0) + 1
        return sum(n * keep.entries(context, self.sinks) for keep, n in counts.items())

    def share(self, context: int) -> float:
        """Entries a token and KV head at this context; 1 is the full cache."""
        return self.entries(context) / (self.num_heads * context)

    def bytes(self, context: int, element_bytes: int = 2, scale_bytes: int = 0) -> int:
        """Bytes of keys and values at this context, with `scale_bytes` more for each of them."""
        return self.entries(context) * 2 * (self.head_dim * element_bytes + scale_bytes)

    def as_dict(self) -> dict[str, object]:
        """The plan, ready for JSON."""
        return {
            "base": self.base,
            "head_dim": self.head_dim,
            "sinks": self.sinks,
            "chunk": CHUNK,
            "blocks": [[str(keep) for keep in block] for block in self.blocks],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Read back what `as_dict` gave; ModelError where a value is missing or not allowed."""
        blocks, sinks, head_dim = values.get("blocks"), values.get("sinks"), values.get("head_dim")
        base, chunk = values.get("base"), values.get("chunk")
        if not isinstance(blocks, list) or not all(isinstance(block, list) for block in blocks):
            raise ModelError("a memory plan has no list of heads for every block")
        if chunk != CHUNK:
            raise ModelError(
                f"a memory plan has chunks of {chunk!r} tokens; this version has {CHUNK}"
            )
        for name, value, least in (("sinks", sinks, 0), ("head_dim", head_dim, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ModelError(f"a memory plan has {name} {value!r}; it must be {least} or more")
        assert isinstance(sinks, int)
        assert isinstance(head_dim, int)
        parsed = tuple(tuple(Keep.parse(str(text)) for text in block) for block in blocks)
        return cls(blocks=parsed, head_dim=head_dim, sinks=sinks, base=str(base or ""))
