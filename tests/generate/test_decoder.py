"""The plain decoder against transformers' own loop, and every way an answer can end."""

from collections.abc import Sequence

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from helpers.agree import assert_no_ties, assert_same_greedy
from helpers.toys import EOS, TINY, byte_tokenizer, tiny_gemma3, tiny_llama
from lightstride.errors import ConfigError
from lightstride.generate import Hooks, PlainDecoder, Settings, generate
from lightstride.generate.batch.masks import attention_argument

PROMPTS = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7, 8, 9], [200]]
LENGTH = 24


def own_loop(model: PreTrainedModel, prompt: Sequence[int], **flags: object) -> list[int]:
    """What transformers' `generate` answers."""
    config = GenerationConfig(max_new_tokens=LENGTH, pad_token_id=258, **flags)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", TINY)
def test_greedy_is_what_transformers_says_alone_and_in_a_ragged_batch(family: str) -> None:
    model = TINY[family]()
    decoder = PlainDecoder(model, byte_tokenizer())
    settings = Settings(max_new_tokens=LENGTH)
    for prompt, answer in zip(PROMPTS, generate(decoder, PROMPTS, settings), strict=True):
        expected = own_loop(model, prompt, eos_token_id=EOS, do_sample=False)
        assert_same_greedy(model, prompt, answer.tokens, expected)
        alone = generate(decoder, [prompt], settings)[0].tokens
        assert_same_greedy(model, prompt, alone, expected)


@pytest.mark.parametrize("storage", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_caches_and_attention_implementations_agree(storage: str, attention: str) -> None:
    model = tiny_llama()
    expected = [own_loop(model, prompt, do_sample=False) for prompt in PROMPTS]
    model.set_attn_implementation(attention)
    decoder = PlainDecoder(model, byte_tokenizer(), storage=storage)
    answers = generate(decoder, PROMPTS, Settings(max_new_tokens=LENGTH))
    for prompt, answer, tokens in zip(PROMPTS, answers, expected, strict=True):
        assert_same_greedy(model, prompt, answer.tokens, tokens)


@pytest.mark.parametrize("family", TINY)
def test_the_head_is_given_rows_that_lie_side_by_side(family: str) -> None:
    model = TINY[family]()
    strides: list[bool] = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: strides.append(inputs[0].is_contiguous())
    )
    settings = Settings(max_new_tokens=3)
    generate(PlainDecoder(model, byte_tokenizer()), [[1, 2, 3], [4], [5, 6]], settings)
    assert strides
    assert all(strides)


def test_the_window_of_sliding_layers_is_kept_when_rows_are_padded() -> None:
    model = tiny_gemma3()
    window = model.config.sliding_window
    prompts = [list(range(1, 3 * window)), [7, 8, 9]]
    decoder = PlainDecoder(model, byte_tokenizer())
    for prompt, answer in zip(
        prompts, generate(decoder, prompts, Settings(max_new_tokens=LENGTH)), strict=True
    ):
        expected = own_loop(model, prompt, eos_token_id=EOS, do_sample=False)
        assert_same_greedy(model, prompt, answer.tokens, expected)
    sees = torch.ones(1, 1, 3 * window).bool()
    masks = attention_argument(sees, model.config, torch.float32)
    assert isinstance(masks, dict)
    assert masks["full_attention"].sum() == 3 * window
    assert masks["sliding_attention"].sum() == window


def test_greedy_repetition_penalty_is_that_of_transformers() -> None:
    model = tiny_llama()
    settings = Settings(repetition_penalty=1.7, max_new_tokens=LENGTH)
    decoder = PlainDecoder(model, byte_tokenizer())
    assert_no_ties(decoder, PROMPTS[:1], settings)
    answer = generate(decoder, PROMPTS[:1], settings)[0]
    expected = own_loop(model, PROMPTS[0], do_sample=False, repetition_penalty=1.7)
    assert list(answer.tokens) == expected != own_loop(model, PROMPTS[0], do_sample=False)


def test_every_end_token_ends_and_nothing_comes_after() -> None:
    model = tiny_llama()
    decoder = PlainDecoder(model, byte_tokenizer())
    free = generate(decoder, PROMPTS[:1], Settings(max_new_tokens=LENGTH))[0]
    assert free.finish_reason == "length"
    assert len(free.tokens) == LENGTH == free.macro_steps == free.kv_entries + 1
    for end in set(free.tokens):
        model.generation_config.eos_token_id = [end, EOS]
        answer = generate(decoder, PROMPTS[:1], Settings(max_new_tokens=LENGTH))[0]
        assert answer.tokens == free.tokens[: free.tokens.index(end) + 1]
        assert answer.finish_reason == "stop"
        assert answer.kv_entries == len(answer.tokens) - 1


def test_rows_that_end_early_leave_the_others_alone() -> None:
    model = tiny_llama()
    decoder = PlainDecoder(model, byte_tokenizer())
    prompts = [[i, i + 1, i + 2][: 1 + i % 3] for i in range(9)]
    assert_no_ties(decoder, prompts, Settings(max_new_tokens=LENGTH))
    alone = [generate(decoder, [p], Settings(max_new_tokens=LENGTH))[0].tokens for p in prompts]
    model.generation_config.eos_token_id = [alone[0][0], alone[1][1], alone[2][2], alone[4][5]]
    together = generate(decoder, prompts, Settings(max_new_tokens=LENGTH))
    lengths = {len(answer.tokens) for answer in together}
    assert len(lengths) > 2
    for answer, whole in zip(together, alone, strict=True):
        assert answer.tokens == whole[: len(answer.tokens)]


def test_stop_strings_end_answers() -> None:
    model = tiny_llama()
    decoder = PlainDecoder(model, byte_tokenizer())
    free = generate(decoder, PROMPTS[:1], Settings(max_new_tokens=LENGTH))[0]
    for index in range(1, LENGTH):
        word = decoder.tokenizer.decode(free.tokens[index - 1 : index + 1])
        if "\ufffd" in word or len(word) < 2:
            continue
        answer = generate(decoder, PROMPTS[:1], Settings(max_new_tokens=LENGTH, stop=(word,)))[0]
        assert answer.text == free.text[: free.text.index(word)]
        assert answer.tokens == free.tokens[: len(answer.tokens)]
        assert answer.finish_reason == "stop"


def test_streamed_is_what_comes_back() -> None:
    decoder = PlainDecoder(tiny_llama(), byte_tokenizer())
    steps = []
    settings = Settings(max_new_tokens=LENGTH, temperature=1.0)
    answers = generate(decoder, PROMPTS, settings, on_step=steps.append)
    for row, answer in enumerate(answers):
        assert "".join(step.text[row] for step in steps) == answer.text
        assert answer.text == decoder.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        assert sum((step.tokens[row] for step in steps), ()) == answer.tokens
        assert sum(answer.steps, ()) == answer.tokens


def test_bytes_are_those_of_a_transformers_cache() -> None:
    model = tiny_llama()
    answer = generate(PlainDecoder(model, byte_tokenizer()), PROMPTS[:1], Settings())[0]
    cache = DynamicCache()
    model(torch.tensor([answer.tokens[:-1]]), past_key_values=cache)
    held = sum(
        x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values)
    )
    assert answer.kv_bytes == held


def test_answers_stop_at_the_end_of_the_context() -> None:
    model = tiny_llama()
    context = model.config.max_position_embeddings
    prompt = [1] * (context - 3)
    answer = generate(PlainDecoder(model, byte_tokenizer()), [prompt], Settings())[0]
    assert (len(answer.tokens), answer.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[]], "empty"),
        ([[1] * 512], "512 tokens; the model's context is 512"),
        ([[1, 260]], "token 260; the model's vocabulary is 0 to 259"),
        ([[-1]], "token -1"),
    ],
)
def test_bad_prompts_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(PlainDecoder(tiny_llama(), byte_tokenizer()), prompts, Settings())


@pytest.mark.parametrize(
    "field",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"confidence": 0.0},
        {"confidence": 1.01},
        {"mode": "fast"},
        {"stop": ("",)},
    ],
)
def test_bad_settings_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(field))} is .*must be"):
        Settings(**field)


def test_a_plain_model_has_one_mode() -> None:
    decoder = PlainDecoder(tiny_llama(), byte_tokenizer())
    with pytest.raises(ConfigError, match="not smashed"):
        generate(decoder, PROMPTS, Settings(mode="trust"))


def test_hooks_process_logits_and_end_rows() -> None:
    def forbid(tokens: Sequence[int], logits_V: torch.Tensor) -> torch.Tensor:
        logits_V = logits_V.clone()
        logits_V[list(tokens)] = -torch.inf
        return logits_V

    hooks = Hooks(forbid, lambda tokens: len(tokens) >= 10)
    steps = list(PlainDecoder(tiny_llama(), byte_tokenizer()).steps(PROMPTS, Settings(), hooks))
    for row in range(len(PROMPTS)):
        tokens = sum((step.tokens[row] for step in steps), ())
        assert len(tokens) == 10 == len(set(tokens))
