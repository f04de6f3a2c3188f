"""Prompts that begin the same, in all modes: the same tokens with and without kept entries."""

import random

import pytest

from helpers.headed_toys import deep_toy, random_head
from helpers.sessions import Request, alone, among_others, tokens_of
from helpers.smash_toys import BASES, sharp, toy
from helpers.toys import byte_tokenizer
from lightstride.generate import Limits, Settings
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.headed import HeadedDecoder

LIMITS = Limits(entries=2000, chunk=24, keeps_prefixes=True)
MODES = ("trust", "lossless", "ar")


def turns(decoder, modes: tuple[str, ...], seed: int) -> list[tuple[Request, int]]:
    """Turns of a chat, each in a mode of its own, and how much of each was cached."""
    rng = random.Random(seed)
    session = decoder.session(LIMITS)
    prompt = tuple(rng.randrange(256) for _ in range(40))
    found = []
    for mode in modes:
        settings = Settings(max_new_tokens=30, mode=mode, confidence=0.1)
        request = Request(prompt, settings)
        steps = alone(session, request)
        assert tokens_of(steps) == tokens_of(alone(decoder.session(), request)), mode
        found.append((request, steps[-1].cached))
        prompt += (*tokens_of(steps), *(rng.randrange(256) for _ in range(9)))
    return found


@pytest.mark.parametrize("base", BASES)
def test_turns_of_a_chat_in_all_modes(base: str) -> None:
    decoder = SmashDecoder(toy(sharp(BASES[base]())), byte_tokenizer())
    for seed in range(2):
        asked = turns(decoder, (*MODES, *MODES), seed)
        lossless, after = asked[1:3]
        assert after[1] >= len(lossless[0].prompt) + 30 - 16 - 1
        assert all(cached >= 32 for _, cached in asked[1:])


def test_merged_entries_are_no_beginning_of_a_prompt() -> None:
    decoder = SmashDecoder(toy(sharp(BASES["llama"]())), byte_tokenizer())
    session = decoder.session(LIMITS)
    prompt = tuple(range(30))
    settings = Settings(max_new_tokens=60, mode="trust", confidence=0.01)
    steps = alone(session, Request(prompt, settings))
    assert len(steps) < 40
    after = alone(session, Request((*prompt, *tokens_of(steps), 1), settings))
    assert after[-1].cached < 48


def test_requests_of_all_modes_at_once() -> None:
    decoder = SmashDecoder(toy(sharp(BASES["llama"]())), byte_tokenizer())
    rng = random.Random(3)
    starts = [tuple(rng.randrange(256) for _ in range(50)) for _ in range(2)]
    requests = [
        Request(
            rng.choice(starts) + tuple(rng.randrange(256) for _ in range(rng.randrange(20))),
            Settings(max_new_tokens=12, mode=MODES[n % 3], confidence=0.2, temperature=n % 4 // 2),
            cancel_after=rng.choice((None, None, 3)),
        )
        for n in range(16)
    ]
    together = among_others(decoder.session(LIMITS), requests, 0)
    for number, request in enumerate(requests):
        found = tokens_of(together[number])
        assert found == tokens_of(alone(decoder.session(), request))[: len(found)]
    assert sum(step.cached for steps in together.values() for step in steps) > 0


def test_a_draft_head_reads_every_prompt_itself() -> None:
    decoder = HeadedDecoder(deep_toy(), random_head(), byte_tokenizer())
    assert [cached for _, cached in turns(decoder, ("lossless", "lossless"), 0)] == [0, 0]
    assert turns(decoder, ("ar", "ar"), 0)[1][1] > 0
