"""A session: a request has the same answer alone and among others, whatever joins or leaves."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from helpers.sessions import Request, alone, among_others, tokens_of
from helpers.toys import byte_tokenizer, tiny_gemma3, tiny_llama
from lightstride.errors import ConfigError
from lightstride.generate import Hooks, Limits, PlainDecoder, Settings, generate

LENGTH = 20
VARIANTS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.5},
)


def some_requests(seed: int, count: int = 12) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(256) for _ in range(rng.choice((1, 2, 5, 9, 30)))),
            Settings(max_new_tokens=rng.randrange(1, LENGTH), seed=number, **rng.choice(VARIANTS)),
            cancel_after=rng.choice((None, None, 1, 4, 9)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("limits", "storage"),
    [
        (Limits(), "dynamic"),
        (Limits(chunk=3, together=7), "static"),
        (Limits(entries=150), "dynamic"),
    ],
)
@pytest.mark.parametrize("family", [tiny_llama, tiny_gemma3])
def test_answers_are_the_same_alone_and_among_others(family, limits: Limits, storage: str) -> None:
    decoder = PlainDecoder(family(), byte_tokenizer(), storage=storage)
    for seed in range(3):
        requests = some_requests(seed)
        together = among_others(decoder.session(limits), requests, seed)
        for number, request in enumerate(requests):
            steps, expected = together[number], alone(decoder.session(), request)
            count = len(tokens_of(steps))
            assert tokens_of(steps) == tokens_of(expected)[:count]
            assert [step.kv_entries for step in steps] == list(range(len(steps)))
            if request.cancel_after is None:
                assert count == len(tokens_of(expected))
                assert steps[-1].finish == expected[-1].finish is not None
                assert "".join(s.text for s in steps) == "".join(s.text for s in expected)


def test_generate_is_a_session_of_all_prompts() -> None:
    decoder = PlainDecoder(tiny_llama(), byte_tokenizer())
    settings = Settings(max_new_tokens=8, temperature=1.0)
    prompts = [[1, 2, 3], [9], [1, 2, 3]]
    answers = generate(decoder, prompts, settings)
    session = decoder.session()
    for number, prompt in enumerate(prompts):
        session.add(prompt, settings, str(number), copy=int(number == 2))
    steps = []
    while session.keys:
        steps += session.step()
    for number, answer in enumerate(answers):
        assert tokens_of([s for s in steps if s.key == str(number)]) == answer.tokens
    assert answers[0].tokens != answers[2].tokens


def test_a_long_prompt_is_read_between_the_steps_of_others() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(Limits(chunk=10))
    session.add([5], Settings(max_new_tokens=30), "short")
    assert [row.key for row in session.step()] == ["short"]
    session.add(list(range(95)), Settings(max_new_tokens=2), "long")
    for _ in range(9):
        assert [row.key for row in session.step()] == ["short"]
    assert [row.key for row in session.step()] == ["short", "long"]
    assert session.keys == ["short", "long"]
    assert [row.finish for row in session.step()] == [None, "length"]
    assert session.keys == ["short"]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    limits = Limits(chunk=10)
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(limits)
    once = Settings(max_new_tokens=1)
    session.add(list(range(100)), once, "long")
    assert session.step() == []
    for number in range(30):
        session.add([number], once, f"short {number}")
    ended = [[row.key for row in session.step()] for _ in range(25)]
    assert sorted(ended[0]) == sorted(f"short {number}" for number in range(30))
    assert ["long"] in ended[:10]


def test_a_long_prompt_is_not_overtaken_for_ever() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(Limits(chunk=10))
    once = Settings(max_new_tokens=1)
    session.add(list(range(100)), once, "long")
    ended = []
    for number in range(40):
        session.add([number] * 5, once, f"short {number}")
        ended.append([row.key for row in session.step()])
    assert any("long" in keys for keys in ended[:20])
    assert sum(map(len, ended)) >= 40


def test_one_forward_of_the_base_a_step() -> None:
    model = tiny_llama()
    session = PlainDecoder(model, byte_tokenizer()).session()
    widths: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(tuple(kwargs["position_ids"].shape)), with_kwargs=True
    )
    for key in "abc":
        session.add([1, 2], Settings(max_new_tokens=3), key)
    session.step()
    session.step()
    assert widths == [(3, 2), (3, 1)]
    session.add([1, 2, 3], Settings(max_new_tokens=3), "d")
    session.cancel("b")
    session.step()
    assert widths[2:] == [(2, 1), (1, 3)]


def test_rows_wait_until_there_is_room() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(Limits(entries=50))
    settings = Settings(max_new_tokens=5)
    assert session.free_entries == 50
    session.add([1] * 10, settings, "a")
    session.add([1] * 14, settings, "b")
    assert session.free_entries == 50 - 2 * 20
    assert not session.fits(10, settings)
    session.add([1] * 10, settings, "c")
    assert {row.key for row in session.step()} == {"a", "b"}
    for _ in range(4):
        assert {row.key for row in session.step()} == {"a", "b"}
    assert session.keys == ["c"]
    assert session.fits(10, settings)
    assert {row.key for row in session.step()} == {"c"}
    with pytest.raises(ConfigError, match="room for 50"):
        session.add([1] * 45, settings, "d")


def test_no_more_memory_is_taken_than_the_limit() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(Limits(entries=200))
    for number in range(7):
        session.add([1] * 10, Settings(max_new_tokens=20), str(number))
        session.step()
    assert session.allocated_bytes <= 200 * session.entry_bytes
    assert session.free_entries == 200 - 7 * 31


def test_memory_is_given_back() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session()
    for number in range(8):
        session.add([1] * 200, Settings(max_new_tokens=1 + 9 * (number == 0)), str(number))
    session.step()
    most = session.allocated_bytes
    assert most >= 8 * 200 * session.entry_bytes
    session.step()
    assert session.allocated_bytes <= most // 4


def test_log_probabilities_are_the_models_own() -> None:
    model = tiny_llama()
    session = PlainDecoder(model, byte_tokenizer()).session()
    prompt = [4, 5, 6]
    session.add(prompt, Settings(max_new_tokens=6, temperature=2.0, logprobs=3), "a")
    session.add([7], Settings(max_new_tokens=6), "b")
    steps = []
    while session.keys:
        steps += [row for row in session.step() if row.key == "a"]
    tokens = tokens_of(steps)
    with torch.no_grad():
        scores = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
    for place, step in enumerate(steps):
        assert step.logprobs is not None
        (found,) = step.logprobs
        expected = scores[len(prompt) - 1 + place]
        assert found.token == tokens[place]
        assert found.logprob == pytest.approx(float(expected[found.token]), abs=1e-4)
        assert [token for token, _ in found.top] == expected.topk(3).indices.tolist()


def test_hooks_are_a_rows_own() -> None:
    def only(token: int) -> Hooks:
        def process(tokens: Sequence[int], logits_V: Tensor) -> Tensor:
            return torch.full_like(logits_V, -torch.inf).index_fill(0, torch.tensor(token), 0.0)

        return Hooks(process, lambda tokens: len(tokens) >= token)

    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session()
    for token in (3, 5):
        session.add([1], Settings(max_new_tokens=9), str(token), hooks=only(token))
    session.add([1], Settings(max_new_tokens=4), "free")
    steps = []
    while session.keys:
        steps += session.step()
    for token in (3, 5):
        assert tokens_of([s for s in steps if s.key == str(token)]) == (token,) * token
    assert [s.finish for s in steps if s.key == "5"][-1] == "stop"
    assert len({*tokens_of([s for s in steps if s.key == "free"])}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [1] * 512}, "context is 512"),
        ({"prompt": [260]}, "vocabulary"),
        ({"settings": Settings(mode="lossless")}, "not smashed"),
        ({"key": "there"}, "'there' is taken"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(changes: dict, message: str) -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session()
    session.add([1], Settings(), "there")
    with pytest.raises(ConfigError, match=message):
        session.add(**{"prompt": [1], "settings": Settings(), "key": "new", **changes})
    session.cancel("never there")
    assert session.keys == ["there"]


def test_stop_strings_need_text() -> None:
    session = PlainDecoder(tiny_llama(), byte_tokenizer()).session(with_text=False)
    with pytest.raises(ConfigError, match="no tokenizer"):
        session.add([1], Settings(stop=("x",)), "a")
    session.add([1], Settings(max_new_tokens=1), "a")
    assert [row.text for row in session.step()] == [""]
