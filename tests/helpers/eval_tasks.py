"""Texts and questions of a toy, and what two ways to score them must agree on."""

import random
from collections.abc import Sequence

import torch

from helpers.toys import TINY, byte_tokenizer
from lightstride.generate import PlainDecoder

WORDS = ["light", "stride", "model", "long", "of", "heads", "a", "width", "search", "keeps"]


def decoder(family: str = "llama") -> PlainDecoder:
    return PlainDecoder(TINY[family](), byte_tokenizer())


def questions(count: int = 8) -> list[tuple[str, str]]:
    """(context, continuation) pairs, two to four continuations of different length a context."""
    draw = random.Random(0)
    pairs = []
    for _ in range(count):
        context = " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
        for _ in range(draw.randint(2, 4)):
            pairs.append((context, " " + " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))))
    return [*pairs, ("", " a width"), ("one letter", " "), ("one letter", "x")]


def agree(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]) -> None:
    assert [pair[1] for pair in ours] == [pair[1] for pair in theirs]
    torch.testing.assert_close(
        torch.tensor([pair[0] for pair in ours]),
        torch.tensor([pair[0] for pair in theirs]),
        atol=1e-4,
        rtol=1e-5,
    )
