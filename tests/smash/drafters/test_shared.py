"""Lookups in earlier answers: against a search, within their bytes, and never in what is said."""

import random
from collections.abc import Sequence

import pytest

from helpers.headed_toys import deep_toy, random_head
from helpers.sessions import Request, alone, tokens_of
from helpers.smash_toys import a_row, sharp, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.generate import RowStep, Settings
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.drafters.guesses import ROOT, Budget
from lightstride.smash.drafters.shared import RUNS, TOKEN_BYTES, SharedAnswers, SharedDrafter

ROOMY = 1 << 20
ASKED = Budget(num_guesses=40, depth=40, least_probability=0.0)


def searched(
    answers: Sequence[Sequence[int]], latest: Sequence[int], most: int
) -> list[tuple[int, list[int]]]:
    """What `SharedAnswers.find` gives, by looking at every place of every answer."""
    found: dict[int, tuple[int, list[int]]] = {}
    for run in RUNS:
        for answer in reversed(answers):
            places = [
                place
                for place in range(run, len(answer))
                if [*answer[place - run : place]] == [*latest[-run:]] and run <= len(latest)
            ]
            if places:
                place = places[-1]
                length = run
                while (
                    length < min(place, len(latest))
                    and answer[place - 1 - length] == latest[-1 - length]
                ):
                    length += 1
                found.setdefault(answer[place], (length, [*answer[place : place + most]]))
                break
    return list(found.values())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_what_a_search_finds(seed: int) -> None:
    rng = random.Random(seed)
    answers = [[rng.randrange(2) for _ in range(rng.randrange(60))] for _ in range(8)]
    shared = SharedAnswers(ROOMY)
    for answer in answers:
        shared.add(answer)
    for _ in range(50):
        latest = [rng.randrange(2) for _ in range(rng.randrange(30))]
        assert shared.find(latest, 5) == searched(answers, latest, 5)


def test_memory_is_bounded_and_the_latest_answers_stay() -> None:
    limit = 100 * TOKEN_BYTES
    shared = SharedAnswers(limit)
    rng = random.Random(0)
    for number in range(200):
        answer = [rng.randrange(50_000) for _ in range(rng.randrange(5, 40))]
        shared.add(answer)
        assert shared.num_bytes <= limit
        assert shared.num_tokens <= 100
        if number % 20 == 0:
            assert shared.find(answer[-5:-1], 3) == [(4, answer[-1:])]
    assert shared.num_tokens == 100


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 7, 20])
def test_answers_longer_than_the_store_leave_their_last_part(size: int) -> None:
    shared = SharedAnswers(size * TOKEN_BYTES)
    answer = list(range(100, 130))
    shared.add(answer)
    shared.add(answer)
    found = shared.find(answer[-5:-1], 9)
    assert found == ([(4, [129])] if size > 5 else [])


def test_an_answer_does_not_go_on_with_another() -> None:
    shared = SharedAnswers(ROOMY)
    shared.add([1, 2, 3, 4, 5])
    shared.add([6, 7, 8, 9, 10, 11])
    assert shared.find([1, 2, 3, 4], 9) == [(4, [5])]
    assert shared.find([2, 3, 4, 5], 9) == []
    assert shared.find([5, 6, 7, 8, 9], 9) == [(4, [10, 11])]


def test_proposals_are_bounded_as_lookups_are() -> None:
    shared = SharedAnswers(ROOMY)
    shared.add(range(60))
    drafter = SharedDrafter(shared)
    row = a_row([0, 1, 2], ends={20}, lookup=33)
    row.tokens += [3]
    (found,) = drafter.propose([row], None, [ASKED])
    assert found.tokens == list(range(4, 14))
    assert [guess.parent for guess in found.guesses] == [ROOT, *range(9)]
    row.tokens += range(4, 12)
    assert drafter.propose([row], None, [ASKED])[0].tokens == list(range(12, 21))
    few = Budget(num_guesses=40, depth=2, least_probability=0.0)
    assert drafter.propose([row], None, [few])[0].tokens == [12, 13]
    none = a_row(range(9), lookup=0)
    assert drafter.propose([none], None, [ASKED])[0].tokens == []
    assert SharedDrafter(None).propose([row], None, [ASKED])[0].tokens == []


def decoder_of(kind: str, shared: SharedAnswers | None) -> SmashDecoder | HeadedDecoder:
    """A toy of either kind."""
    if kind == "smashed":
        return SmashDecoder(toy(sharp(tiny_llama(tied=False))), byte_tokenizer(), shared=shared)
    return HeadedDecoder(deep_toy(), random_head(), byte_tokenizer(), shared=shared)


def asked(decoder: SmashDecoder | HeadedDecoder, seed: int) -> list[RowStep]:
    """A sampled answer by a session of its own: nothing in it repeats."""
    settings = Settings(
        max_new_tokens=40, temperature=1.5, mode="lossless", seed=seed, ignore_end_tokens=True
    )
    return alone(decoder.session(), Request((1, 2, 3), settings))


@pytest.mark.parametrize("kind", ["smashed", "headed"])
def test_what_another_request_was_told_makes_fewer_steps(kind: str) -> None:
    plain = asked(decoder_of(kind, None), 0)
    decoder = decoder_of(kind, SharedAnswers(ROOMY))
    first, second = asked(decoder, 0), asked(decoder, 0)
    assert tokens_of(first) == tokens_of(second) == tokens_of(plain)
    assert len(second) < 0.6 * len(first)
    assert second[-1].accepted > first[-1].accepted


@pytest.mark.parametrize("kind", ["smashed", "headed"])
def test_no_token_of_another_answer_is_said(kind: str) -> None:
    """Answers that begin as this one does and go on otherwise are proposed, and never kept."""
    plain = [tokens_of(asked(decoder_of(kind, None), seed)) for seed in range(3)]
    shared = SharedAnswers(ROOMY)
    for answer in plain:
        for place in range(4, 40):
            shared.add([*answer[:place], *((token + 1) % 256 for token in answer[place:])])
    decoder = decoder_of(kind, shared)
    for seed, answer in enumerate(plain):
        steps = asked(decoder, seed)
        assert tokens_of(steps) == answer
        assert steps[-1].drafted > 0


def test_answers_of_all_modes_are_taken_in_when_they_have_ended() -> None:
    shared = SharedAnswers(ROOMY)
    decoder = decoder_of("smashed", shared)
    session = decoder.session()
    for count, mode in enumerate(("ar", "lossless", "trust")):
        session.add((1, 2, 3), Settings(max_new_tokens=9, mode=mode, ignore_end_tokens=True), "a")
        while session.keys:
            assert shared.num_tokens == 10 * count
            session.step()
    assert shared.num_tokens == 30
    session.add((1, 2, 3), Settings(max_new_tokens=9, mode="ar"), "gone")
    session.step()
    session.cancel("gone")
    session.step()
    assert shared.num_tokens == 30
