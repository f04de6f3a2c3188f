"""Forwards that are given up for newcomers: nobody's answer is another for it."""

import random

import pytest

from helpers.memory_toys import mixed_memory
from helpers.sessions import Request, alone, tokens_of
from helpers.toys import byte_tokenizer, tiny_gemma3, tiny_llama
from lightstride.generate import Limits, PlainDecoder, Settings


class Newcomers:
    """Rows that join a session in the middle of a forward, at random layers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.left = [Request((n, n, n), Settings(max_new_tokens=1)) for n in range(20)]
        self.come: list[Request] = []

    def __call__(self) -> bool:
        if self.left and self.rng.random() < 0.3:
            self.come.append(self.left.pop())
        return bool(self.come)


@pytest.mark.parametrize("family", [tiny_llama, tiny_gemma3])
@pytest.mark.parametrize("with_memory", [False, True])
def test_what_is_given_up_leaves_no_trace(family, with_memory: bool) -> None:
    model = family()
    memory = mixed_memory(model) if with_memory else None
    decoder = PlainDecoder(model, byte_tokenizer(), memory=memory)
    rng = random.Random(1)
    long = [
        Request(tuple(rng.randrange(256) for _ in range(size)), Settings(max_new_tokens=8))
        for size in (150, 60, 90)
    ]
    expected = [tokens_of(alone(decoder.session(Limits(chunk=10)), each)) for each in long]
    gave_up = 0
    for seed in range(2):
        session = decoder.session(Limits(chunk=10, long_chunk=40))
        newcomers = Newcomers(seed)
        said: dict[str, tuple[int, ...]] = {}
        for number, request in enumerate(long):
            session.add(request.prompt, request.settings, str(number))
        while session.keys:
            steps = session.step(newcomers)
            gave_up += not steps and bool(newcomers.come)
            for row in steps:
                said[row.key] = said.get(row.key, ()) + row.tokens
            for request in newcomers.come:
                session.add(request.prompt, request.settings, f"new {request.prompt[0]}")
            newcomers.come.clear()
        assert [said.pop(str(number)) for number in range(3)] == expected
        for key, tokens in said.items():
            prompt = (int(key.removeprefix("new ")),) * 3
            request = Request(prompt, Settings(max_new_tokens=1))
            assert tokens == tokens_of(alone(decoder.session(), request))
    assert gave_up > 3


def test_a_newcomer_waits_for_one_layer_of_a_long_prompt() -> None:
    model = tiny_llama()
    session = PlainDecoder(model, byte_tokenizer()).session(Limits(chunk=10, long_chunk=90))
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["position_ids"].shape[1]), with_kwargs=True
    )
    once = Settings(max_new_tokens=1)
    session.add(list(range(100)), once, "long")
    asked = iter([False, True])
    assert session.step(lambda: next(asked)) == []
    session.add([1, 2], once, "short")
    assert [row.key for row in session.step(lambda: False)] == ["short"]
    while session.keys:
        session.step(lambda: False)
    assert widths == [90, 2, 10, 90]
