"""Entries kept for prompts that begin the same: the same tokens with them, and a bound on them."""

import random
from collections.abc import Sequence

import pytest
import torch

from helpers.memory_toys import mixed_memory
from helpers.sessions import Request, alone, among_others, tokens_of
from helpers.toys import byte_tokenizer, tiny_gemma3, tiny_llama
from lightstride.generate import Limits, PlainDecoder, Settings
from lightstride.generate.batch.cache import KvBuffer
from lightstride.generate.prefixes import BLOCK, PrefixPool

KEPT = Limits(entries=2000, chunk=24, keeps_prefixes=True)


def conversations(seed: int, count: int = 10) -> list[Request]:
    """Prompts of few beginnings, some of them others' continuations."""
    rng = random.Random(seed)
    starts = [tuple(rng.randrange(256) for _ in range(rng.choice((20, 40, 70)))) for _ in range(3)]
    return [
        Request(
            rng.choice(starts)
            + tuple(rng.randrange(256) for _ in range(rng.choice((0, 1, 5, 30)))),
            Settings(max_new_tokens=rng.randrange(1, 40), temperature=number % 2, seed=number),
            cancel_after=rng.choice((None, None, 3, 8)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("storage", ["dynamic", "static"])
@pytest.mark.parametrize("family", [tiny_llama, tiny_gemma3])
def test_answers_are_the_same_with_and_without(family, storage: str) -> None:
    decoder = PlainDecoder(family(), byte_tokenizer(), storage=storage)
    session = decoder.session(KEPT)
    num_cached = 0
    for seed in range(3):
        requests = conversations(seed % 2)
        together = among_others(session, requests, seed)
        for number, request in enumerate(requests):
            expected = tokens_of(alone(decoder.session(), request))
            found = tokens_of(together[number])
            assert found == (expected if request.cancel_after is None else expected[: len(found)])
            for step in together[number]:
                assert step.cached % BLOCK == 0
                assert step.cached < len(request.prompt)
                num_cached += step.cached
    assert num_cached > 0


def test_the_next_turn_of_a_chat_reads_what_is_new_alone() -> None:
    model = tiny_llama()
    session = PlainDecoder(model, byte_tokenizer()).session(KEPT)
    prompt = list(range(50))
    first = tokens_of(alone(session, Request(tuple(prompt), Settings(max_new_tokens=20))))
    session.step()
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["position_ids"].shape[1]), with_kwargs=True
    )
    turn = (*prompt, *first, 7, 7, 7)
    steps = alone(session, Request(turn, Settings(max_new_tokens=2)))
    assert steps[0].cached == 64
    assert widths[0] == len(turn) - 64


def test_prompts_that_wait_use_what_one_of_them_has_read() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(KEPT)
    for number in range(5):
        session.add(list(range(100)), Settings(max_new_tokens=3), str(number))
    steps = []
    while session.keys:
        steps += session.step()
    assert {step.key: step.cached for step in steps} == {"0": 0, **dict.fromkeys("1234", 96)}
    assert len({tokens_of([s for s in steps if s.key == key]) for key in "01234"}) == 1


def test_no_more_memory_is_taken_than_the_limit() -> None:
    rng = random.Random(0)
    limits = Limits(entries=400, keeps_prefixes=True)
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(limits)
    for number in range(40):
        prompt = [rng.randrange(4)] * 32 + [rng.randrange(256) for _ in range(rng.randrange(60))]
        session.add(prompt, Settings(max_new_tokens=rng.randrange(1, 60)), str(number))
        for _ in range(rng.randrange(1, 9)):
            session.step()
            assert session.allocated_bytes <= 400 * session.entry_bytes
            assert BLOCK * len(session.prefixes.blocks) + session.promised(session.rows) <= 400
    assert session.prefixes.blocks


def test_a_memory_plan_keeps_no_prefixes() -> None:
    model = tiny_llama()
    decoder = PlainDecoder(model, byte_tokenizer(), memory=mixed_memory(model))
    session = decoder.session(KEPT)
    request = Request(tuple(range(60)), Settings(max_new_tokens=4))
    assert tokens_of(alone(session, request)) == tokens_of(alone(session, request))
    assert alone(session, request)[-1].cached == 0


def filled(rng: random.Random, tokens: Sequence[int]) -> KvBuffer:
    """A cache of one row and two layers, whose entries are its tokens."""
    cache = KvBuffer("dynamic")
    cache.num_rows, cache.capacity = 1, 1000
    cache.reserve(slice(0, 1), max(len(tokens), 1), 0, None)
    states = torch.tensor(tokens, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 3)
    for layer in range(2):
        cache.update(states, -states, layer)
    return cache


def test_the_pool_is_a_list_of_all_that_was_kept() -> None:
    rng = random.Random(1)
    pool = PrefixPool()
    kept: set[tuple[int, ...]] = set()
    for number in range(300):
        pool.bound(rng.choice((0, 40, 200, 1000)) if number % 20 == 0 else BLOCK * pool.most)
        tokens = [rng.randrange(2) for _ in range(6)]
        tokens = [token for token in tokens for _ in range(BLOCK)][: rng.randrange(90)]
        chain = pool.find(tokens)
        found = BLOCK * len(chain)
        assert not found or tuple(tokens[:found]) in kept
        if found:
            cache = filled(rng, [99] * 5)
            assert pool.load(chain, cache, 0) == found
            for buffer in cache.buffers:
                assert buffer[0, 0, :found, 0].abs().tolist() == tokens[:found]
        pool.keep(tokens, filled(rng, tokens), 0)
        kept |= {tuple(tokens[:end]) for end in range(BLOCK, len(tokens) + 1, BLOCK)}
        whole = min(len(tokens) // BLOCK, pool.most)
        assert len(pool.find(tokens)) == whole
        assert len(pool.blocks) <= pool.most
        assert len(pool.blocks) + len(pool.free) == pool.num_slots <= max(pool.most, 0)
        assert len({block.slot for block in pool.blocks.values()}) == len(pool.blocks)


def test_what_was_not_used_for_longest_goes_first() -> None:
    pool = PrefixPool()
    pool.bound(4 * BLOCK)
    shared, one, other = ([token] * BLOCK for token in (1, 2, 3))
    for tokens in ([*shared, *one], [*shared, *other], [*shared, *one]):
        pool.keep(tokens, filled(random.Random(), tokens), 0)
    fresh = [5] * (2 * BLOCK)
    pool.keep(fresh, filled(random.Random(), fresh), 0)
    assert len(pool.find([*shared, *one])) == 2
    assert len(pool.find([*shared, *other])) == 1
    assert len(pool.find(fresh)) == 2
