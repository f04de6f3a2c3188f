"""Cut an answer into segments: how many tokens each macro step emits while training.

Paper: HAMburger (arXiv 2505.20438), data segmentation.  The base model's entropies e_1..e_L, in
nats, of the distributions that predict the tokens of its answer, show where a token is easy
enough to be emitted together with the one before.  Scanned left to right, a token joins the open
segment or starts a new one; no segment is longer than K = `max_segment`.

    small_group     easy tokens (e <= t) form runs; a hard token stands alone
    decreasing      joins if e <= r * (entropy of the segment's first token)
    decreasing_v2   joins if e < floor or e < r * (largest entropy in the segment)
    sliding         joins if e < t
    agreement       joins while the model's own draft from the segment's start is right

t = H(c) is the largest entropy a distribution over N tokens can have whose top probability is c.
We differ: thresholds come from the vocabulary size N, which the published code fixes at 128256;
`cut_by_agreement` is ours; threshold and K are drawn per sequence, so that one model serves every
confidence.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightstride.errors import ConfigError

Strategy = Literal["small_group", "decreasing", "decreasing_v2", "sliding"]

EASY_CONFIDENCE = 0.95
SLIDING_CONFIDENCE = 0.7
DECREASE = 0.3
EASY_ENTROPY = 0.05


def entropy_bound(confidence: float, vocab_size: int) -> float:
    """Largest entropy, in nats, of a distribution whose top probability is `confidence`."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    rest = 1 - confidence
    return -(confidence * math.log(confidence) + rest * math.log(rest / (vocab_size - 1)))


def scan(
    entropies: Sequence[float], max_segment: int, joins: Callable[[float, float, float], bool]
) -> list[int]:
    """Segment lengths when a token joins by `joins(entropy, first of segment, largest of it)`."""
    lengths: list[int] = []
    first = largest = 0.0
    for entropy in entropies:
        if lengths and lengths[-1] < max_segment and joins(entropy, first, largest):
            lengths[-1] += 1
            largest = max(largest, entropy)
        else:
            lengths.append(1)
            first = largest = entropy
    return lengths


def small_group(entropies: Sequence[float], max_segment: int, threshold: float) -> list[int]:
    """Runs of tokens with entropy at most `threshold`; every other token alone."""
    return scan(entropies, max_segment, lambda e, _first, largest: max(e, largest) <= threshold)


def decreasing(entropies: Sequence[float], max_segment: int, ratio: float = DECREASE) -> list[int]:
    """Tokens join while at most `ratio` times the entropy of the segment's first token."""
    return scan(entropies, max_segment, lambda e, first, _largest: e <= ratio * first)


def decreasing_v2(
    entropies: Sequence[float],
    max_segment: int,
    ratio: float = DECREASE,
    floor: float = EASY_ENTROPY,
) -> list[int]:
    """Tokens join while below `floor`, or below `ratio` times the segment's largest entropy."""
    return scan(entropies, max_segment, lambda e, _first, top: e < floor or e < ratio * top)


def sliding(entropies: Sequence[float], max_segment: int, threshold: float) -> list[int]:
    """Tokens join while their entropy is below `threshold`."""
    return scan(entropies, max_segment, lambda e, _first, _largest: e < threshold)


def cut_by_agreement(agrees: Sequence[Sequence[bool]], max_segment: int) -> list[int]:
    """Segments as long as the model's own drafts are right.

    `agrees[i][k]` means that a micro decoder started at token i would emit, k + 1 tokens later, the
    token that stands at i + k + 1; a segment starts at i and takes its leading run of agreements.
    """
    lengths: list[int] = []
    start = 0
    while start < len(agrees):
        room = min(max_segment, len(agrees) - start)
        length = 1
        while length < room and agrees[start][length - 1]:
            length += 1
        lengths.append(length)
        start += length
    return lengths


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Rule by which one sequence is cut."""

    strategy: Strategy = "decreasing_v2"
    """Rule by which a token joins the open segment."""
    max_segment: int = 4
    """Most tokens a segment may have."""
    confidence: float | None = None
    """Top probability whose entropy bound is the threshold; the published one if not given."""

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            allowed = ", ".join(get_args(Strategy))
            raise ConfigError(f"unknown segmentation {self.strategy!r}; allowed: {allowed}")
        if self.max_segment < 1:
            raise ConfigError(f"max_segment must be at least 1, got {self.max_segment}")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def lengths(self, entropies: Sequence[float], vocab_size: int) -> list[int]:
        """Segment lengths of a sequence; they sum to its length."""
        if self.strategy == "small_group":
            threshold = entropy_bound(self.confidence or EASY_CONFIDENCE, vocab_size)
            return small_group(entropies, self.max_segment, threshold)
        if self.strategy == "sliding":
            threshold = entropy_bound(self.confidence or SLIDING_CONFIDENCE, vocab_size)
            return sliding(entropies, self.max_segment, threshold)
        if self.strategy == "decreasing":
            return decreasing(entropies, self.max_segment)
        return decreasing_v2(entropies, self.max_segment)


def draw_segmentation(
    rng: random.Random,
    *,
    max_segment: int,
    confidences: tuple[float, float] = (0.5, 0.99),
) -> Segmentation:
    """A rule for one sequence: `sliding` or `small_group` at a random threshold and length cap."""
    return Segmentation(
        strategy=rng.choice(("sliding", "small_group")),
        max_segment=rng.randint(1, max_segment),
        confidence=rng.uniform(*confidences),
    )


def mean_segment_length(lengths: Sequence[Sequence[int]]) -> float:
    """Tokens per macro step that a segmentation itself allows, over all sequences."""
    return sum(map(sum, lengths)) / sum(map(len, lengths))
