"""Rows of all modes in one session: the same answers alone and among others."""

import random

import pytest
import torch

from helpers.sessions import Request, alone, among_others, tokens_of
from helpers.smash_toys import BASES, sharp, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError
from lightstride.generate import Limits, PlainDecoder, Settings
from lightstride.smash.decode.decoder import SmashDecoder

MODES = ("lossless", "ar", "trust")
VARIANTS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.9, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.4},
    {"repetition_penalty": 1.4},
    {"lookup": 0},
    {"tree": 5},
)


def some_requests(seed: int, count: int = 14) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(256) for _ in range(rng.choice((1, 2, 5, 9, 20)))),
            Settings(
                max_new_tokens=rng.randrange(1, 20),
                seed=number,
                mode=MODES[number % 3],
                confidence=rng.choice((0.1, 0.4)),
                **rng.choice(VARIANTS),
            ),
            cancel_after=rng.choice((None, None, None, 1, 4)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("limits", [Limits(), Limits(chunk=3, together=7), Limits(entries=250)])
@pytest.mark.parametrize("base", BASES)
def test_answers_are_the_same_alone_and_among_others(base: str, limits: Limits) -> None:
    decoder = SmashDecoder(toy(sharp(BASES[base]())), byte_tokenizer())
    longest = 0
    for seed in range(2):
        requests = some_requests(seed)
        together = among_others(decoder.session(limits), requests, seed)
        for number, request in enumerate(requests):
            steps, expected = together[number], alone(decoder.session(), request)
            count = len(tokens_of(steps))
            assert tokens_of(steps) == tokens_of(expected)[:count], request.settings
            if request.cancel_after is None:
                assert count == len(tokens_of(expected))
                assert steps[-1].finish == expected[-1].finish is not None
            if request.settings.mode != "lossless":  # trees are smaller in batches
                assert [s.tokens for s in steps] == [s.tokens for s in expected][: len(steps)]
                assert [s.kv_entries for s in steps] == list(range(len(steps)))
            for step in steps:
                assert 0 <= step.accepted <= step.drafted
                longest = max(longest, len(step.tokens))
    assert longest > 2


def test_counts_of_drafts_are_those_of_the_answer() -> None:
    decoder = SmashDecoder(toy(), byte_tokenizer())
    for mode in MODES:
        asked = Settings(max_new_tokens=20, mode=mode, confidence=0.1, ignore_end_tokens=True)
        steps = alone(decoder.session(), Request((1, 2, 3), asked))
        assert [step.steps for step in steps] == list(range(1, len(steps) + 1))
        before_last = steps[-2]
        emitted = len(tokens_of(steps[:-1]))
        if mode == "lossless":
            assert before_last.accepted == emitted - before_last.steps
        if mode == "ar":
            assert steps[-1].drafted == 0


@pytest.mark.parametrize("mode", ["lossless", "ar"])
def test_log_probabilities_of_the_exact_modes_are_the_bases(mode: str) -> None:
    model = toy()
    prompt = (4, 5, 6)
    asked = Settings(max_new_tokens=12, mode=mode, confidence=0.1, logprobs=2, lookup=0, tree=8)
    steps = alone(SmashDecoder(model, byte_tokenizer()).session(), Request(prompt, asked))
    tokens = tokens_of(steps)
    found = [each for step in steps for each in step.logprobs or ()]
    assert [each.token for each in found] == list(tokens)
    assert any(len(step.tokens) > 1 for step in steps) == (mode != "ar")
    with torch.no_grad():
        scores = model.base(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
    for place, each in enumerate(found):
        expected = scores[len(prompt) - 1 + place]
        assert each.logprob == pytest.approx(float(expected[each.token]), abs=1e-4)
        assert len(each.top) == 2


def test_log_probabilities_are_refused_where_the_base_does_not_see_every_token() -> None:
    session = SmashDecoder(toy(), byte_tokenizer()).session()
    with pytest.raises(ConfigError, match="logprobs"):
        session.add([1], Settings(mode="trust", logprobs=0), "a")


def test_lossless_among_others_is_the_plain_decoder() -> None:
    model = toy()
    plain = PlainDecoder(model.base, byte_tokenizer())
    requests = [
        Request((n, 2 * n), Settings(max_new_tokens=12, seed=n, mode="lossless", temperature=n % 2))
        for n in range(1, 10)
    ]
    decoder = SmashDecoder(model, byte_tokenizer())
    together = among_others(decoder.session(Limits(chunk=1)), requests, 3)
    for number, request in enumerate(requests):
        asked = Settings(max_new_tokens=12, seed=number + 1, temperature=(number + 1) % 2)
        expected = alone(plain.session(), Request(request.prompt, asked))
        assert tokens_of(together[number]) == tokens_of(expected)
