"""Every mode on a memory plan: answers are the model's with that memory, whoever else is there."""

import random

import pytest
import torch
from transformers import PreTrainedModel

from helpers.agree import TIE
from helpers.memory_toys import mixed_memory
from helpers.smash_toys import sharp, toy
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.batch import memory_batch
from lightstride.generate.decoder import Generation
from lightstride.memory.attention import heads_of
from lightstride.memory.cache import Memory
from lightstride.memory.fitness import logits_of
from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import MemoryPlan
from lightstride.smash.decode.decoder import SmashDecoder


@pytest.fixture(params=[0, 50, 512], ids=["groups", "both", "whole"])
def held_whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns up to which all entries are held."""
    monkeypatch.setattr("lightstride.memory.cache.WHOLE", request.param)


def prompts(count: int, seed: int, shortest: int = 5, longest: int = 90) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(256) for _ in range(rng.randint(shortest, longest))] for _ in range(count)
    ]


def check_greedy(
    model: PreTrainedModel, memory: Memory, prompt: list[int], answer: Generation
) -> None:
    """Every token is the likeliest after the text before it, read whole under the plan's mask."""
    tokens_T = torch.tensor([*prompt, *answer.tokens])
    hidden_TD = masked_hidden(model, tokens_T, memory.plan, memory.scores)[len(prompt) - 1 : -1]
    with torch.inference_mode():
        logits_AV = logits_of(model, hidden_TD)
    said_A = logits_AV.gather(1, tokens_T[len(prompt) :, None])[:, 0]
    assert (logits_AV.amax(-1) - said_A).max() < TIE


@pytest.mark.parametrize("family", TINY)
def test_greedy_answers_are_the_masked_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_batch, "PROMPT_CHUNK", 32)
    model = TINY[family]()
    memory = mixed_memory(model, 1)
    decoder = PlainDecoder(model, byte_tokenizer(), memory=memory)
    asked = prompts(4, 2)
    settings = Settings(max_new_tokens=50, ignore_end_tokens=True)
    for prompt, answer in zip(asked, generate(decoder, asked, settings), strict=True):
        check_greedy(model, memory, prompt, answer)


def test_the_cache_is_smaller_and_entries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightstride.memory.cache.WHOLE", 200)
    model = tiny_llama(num_layers=4)
    memory = mixed_memory(model, 3)
    asked = prompts(2, 4, 380, 400)
    settings = Settings(max_new_tokens=40, ignore_end_tokens=True)
    plain = PlainDecoder(model, byte_tokenizer())
    full = generate(plain, asked, settings)
    last = [*plain.steps(asked, settings)][-1].allocated_bytes
    remembering = PlainDecoder(model, byte_tokenizer(), memory=memory)
    kept = generate(remembering, asked, settings)
    assert [*remembering.steps(asked, settings)][-1].allocated_bytes < 0.8 * last
    for prompt, whole, fewer in zip(asked, full, kept, strict=True):
        share = memory.plan.share(len(prompt) + len(fewer.tokens) - 1)
        assert fewer.kv_entries == round(share * whole.kv_entries)


def test_the_full_plan_is_the_full_cache() -> None:
    model = tiny_llama()
    memory = Memory(MemoryPlan.full(heads_of(model), 8))
    settings = Settings(max_new_tokens=20)
    decoder = PlainDecoder(model, byte_tokenizer(), memory=memory)
    asked = prompts(3, 5)
    for prompt, answer in zip(asked, generate(decoder, asked, settings), strict=True):
        check_greedy(model, memory, prompt, answer)


@pytest.mark.usefixtures("held_whole")
def test_lossless_is_one_by_one_on_the_same_plan() -> None:
    model = toy(sharp(tiny_llama(tied=False)))
    memory = mixed_memory(model.base, 6)
    decoder = SmashDecoder(model, byte_tokenizer(), memory=memory)
    asked = prompts(200, 7, 5, 60)
    settings = Settings(max_new_tokens=24, mode="lossless", confidence=0.05, tree=6)
    answers = generate(decoder, asked, settings)
    assert sum(answer.tokens_per_step for answer in answers) > 1.2 * len(answers)
    ones = generate(decoder, asked, Settings(max_new_tokens=24, mode="ar"))
    same = 0
    for prompt, answer, one in zip(asked, answers, ones, strict=True):
        same += answer.tokens == one.tokens
        check_greedy(model.base, memory, prompt, answer)
    assert same >= 198


@pytest.mark.usefixtures("held_whole")
@pytest.mark.parametrize("mode", ["lossless", "ar", "trust"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_say_the_same_alone_and_among_others(mode: str, temperature: float) -> None:
    model = toy(sharp(tiny_llama(tied=False)))
    memory = mixed_memory(model.base, 8)
    decoder = SmashDecoder(model, byte_tokenizer(), memory=memory)
    settings = Settings(max_new_tokens=30, mode=mode, confidence=0.3, temperature=temperature)
    session = decoder.session()
    asked = prompts(5, 9, 20, 70)
    said: dict[str, list[int]] = {str(index): [] for index in range(len(asked))}
    for index, prompt in enumerate(asked):
        session.add(prompt, settings, str(index))
        for row in session.step():
            said[row.key] += row.tokens
    while session.keys:
        for row in session.step():
            said[row.key] += row.tokens
    for index, prompt in enumerate(asked):
        (alone,) = generate(decoder, [prompt], settings)
        assert said[str(index)] == list(alone.tokens)


def test_eight_bits_stack_with_a_plan() -> None:
    model = tiny_llama(head_dim=32)
    asked = prompts(2, 11, 80, 90)
    settings = Settings(max_new_tokens=12, ignore_end_tokens=True)
    equal = []
    for seed in range(8, 12):
        exact, near = (
            generate(
                PlainDecoder(model, byte_tokenizer(), memory=mixed_memory(model, seed, kind)),
                asked,
                settings,
            )
            for kind in ("model", "int8")
        )
        assert near[0].kv_bytes < 0.3 * exact[0].kv_bytes
        for one, other in zip(exact, near, strict=True):
            equal += [a == b for a, b in zip(one.tokens, other.tokens, strict=True)]
    assert sum(equal) > 0.75 * len(equal)  # two likeliest tokens of a toy are sometimes close
