"""What a report reads of results' numbers, with types and ranges: no other number is drawn."""

from typing import Annotated

from msgspec import Meta, Struct

from lightstride.files.read import Count

Positive = Annotated[float, Meta(gt=0, le=1e12)]
Size = Annotated[int, Meta(ge=1, le=1 << 24)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 53)]
Share = Annotated[float, Meta(ge=-1, le=1)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
Items = Annotated[str, Meta(pattern="^[01]*$")] | list[Number]
"""Score of each item; those that are only right or wrong in one string."""


class MeasuredSpread(Struct, frozen=True):
    """Several measurements of one thing."""

    median: Positive
    low: Positive
    high: Positive


class BenchedLoad(Struct, frozen=True):
    """What `bench` measured under one load."""

    batch: Size
    prompt: Size
    first_token_seconds: MeasuredSpread
    decode_tokens_per_second: MeasuredSpread
    tokens_per_step: Annotated[float, Meta(gt=0, le=1e4)]


class Benched(Struct, frozen=True):
    """What `bench` measured of one model."""

    source: str
    parameters: Bytes
    total_bytes: Bytes
    loads: list[BenchedLoad]


class Perplexity(Struct, frozen=True):
    """Perplexity on a text; None where it was infinite."""

    value: Number | None
    num_tokens: Count


class Score(Struct, frozen=True):
    """A task's score."""

    value: Number
    stderr: Number | None
    num_items: Count
    items: Items = ""


class Evaluated(Struct, frozen=True):
    """What `evaluate` measured of one model."""

    source: str
    parameters: Bytes
    weight_bytes: Bytes
    perplexity: Perplexity | None
    tasks: dict[str, Score]


class Compared(Struct, frozen=True):
    """One model's score against another's."""

    score: Number
    against: Number
    difference: Number
    difference_stderr: Number | None
    ratio: Number | None
    ratio_stderr: Number | None
    above_chance: Number | None


class Cut(Struct, frozen=True):
    """One checkpoint of a pruning run, or its dense model."""

    parameters: Bytes
    bytes: Bytes
    sparsity: Share
    plan: str | None
    perplexity: Number | None
    folder: str = ""


class Pruned(Struct, frozen=True):
    """What `prune` measured."""

    dense: Cut
    sizes: list[Cut]


class Judged(Struct, frozen=True):
    """What benchmarks/quality.py measured of one model."""

    source: str
    parameters: Bytes
    weight_bytes: Bytes
    sparsity: Share
    mean: Compared | None
    retained: dict[str, Compared]
