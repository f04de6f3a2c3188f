"""From logits to a token: filters, draws, and numbers that depend on row and place alone."""

import pytest
import torch
from transformers import GenerationConfig

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.errors import ModelError
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.sampling import (
    distribution,
    draw,
    likeliest,
    near_ties,
    penalize,
    row_key,
    uniform,
)

PROMPTS = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7, 8, 9], [200]]
LENGTH = 24


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=0.7),
        Settings(temperature=1.3, top_k=7),
        Settings(temperature=1.0, top_p=0.6),
        Settings(temperature=1.0, min_p=0.2),
        Settings(temperature=0.9, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    ],
)
def test_filters_are_those_of_transformers(settings: Settings) -> None:
    logits_NV = torch.randn(4, 260) * 3
    prompt = [3, 4, 5]
    config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p or None,
        repetition_penalty=settings.repetition_penalty,
    )
    model = tiny_llama()
    processors = model._get_logits_processor(config, input_ids_seq_length=3)
    expected = processors(torch.tensor([prompt] * 4), logits_NV.clone()).double().softmax(-1)
    seen_NV = torch.zeros(4, 260, dtype=torch.bool)
    seen_NV[:, prompt] = True
    found = distribution(penalize(logits_NV, seen_NV, settings.repetition_penalty), settings)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]], dtype=torch.float64)
    uniforms = torch.arange(1000, dtype=torch.float64) / 1000
    tokens = draw(probabilities.expand(1000, -1), uniforms)
    assert torch.bincount(tokens, minlength=6).tolist() == [0, 500, 0, 300, 200, 0]
    assert draw(probabilities, torch.tensor([1.0], dtype=torch.float64)).tolist() == [4]


def test_uniform_numbers_are_uniform_and_depend_on_everything() -> None:
    keys = [row_key(seed, prompt, copy) for seed in (0, 1) for prompt in PROMPTS for copy in (0, 1)]
    numbers = [uniform(key, index) for key in keys for index in range(600)]
    assert len(set(numbers)) == len(numbers)
    histogram = torch.histc(torch.tensor(numbers), 10, 0, 1)
    expected = len(numbers) / 10
    assert ((histogram - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 d.f., p = 0.001


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=1.0, seed=5, max_new_tokens=LENGTH),
        Settings(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, max_new_tokens=LENGTH),
        Settings(repetition_penalty=1.5, max_new_tokens=LENGTH),
    ],
)
def test_a_row_draws_the_same_alone_and_in_a_batch(settings: Settings) -> None:
    decoder = PlainDecoder(tiny_llama(), byte_tokenizer())
    together = generate(decoder, PROMPTS, settings)
    alone = [generate(decoder, [prompt], settings)[0] for prompt in PROMPTS]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_copies_of_a_prompt_draw_differently_and_seeds_matter() -> None:
    decoder = PlainDecoder(tiny_llama(), byte_tokenizer())
    first, second = generate(decoder, [PROMPTS[0]] * 2, Settings(temperature=1, max_new_tokens=16))
    assert first.tokens != second.tokens
    other = Settings(temperature=1, max_new_tokens=16, seed=1)
    assert generate(decoder, PROMPTS[:1], other)[0].tokens != first.tokens


def test_logits_that_are_not_finite_choose_nothing() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    decoder = PlainDecoder(model, byte_tokenizer())
    with pytest.raises(ModelError, match="NaN or infinite"):
        generate(decoder, [[1, 2]], Settings(max_new_tokens=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_the_likeliest_is_torchs_own(dtype: torch.dtype, shift: float) -> None:
    logits = (3 * torch.randn(2, 5, 301) + shift).to(dtype)
    found = likeliest(logits)
    assert found.shape == (2, 5)
    assert torch.equal(logits.gather(-1, found[..., None])[..., 0], logits.amax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_near_ties_are_leads_that_rounding_may_turn(dtype: torch.dtype, sign: int) -> None:
    eps = torch.finfo(dtype).eps
    far = 1 - 200 * sign * eps
    pairs = [[1.0, far], [1.0, 1.0], [1.0, 1 - sign * eps], [far, 1.0]]
    logits = torch.full((4, 9), -50.0)
    logits[:, :2] = 8 * sign * torch.tensor(pairs)
    assert near_ties(logits.to(dtype)) == [False, True, True, False]
