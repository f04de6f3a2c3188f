"""The smashed model as transformers sees it: its auto classes and `generate`."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, TextStreamer

from helpers.agree import assert_no_ties
from helpers.smash_folders import save_folders
from helpers.smash_toys import PROMPTS, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError, LightstrideError, ModelError
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return save_folders(tmp_path)


def test_auto_classes_open_it(folders: tuple[Path, Path]) -> None:
    _, smashed = folders
    assert isinstance(AutoConfig.from_pretrained(smashed), SmashConfig)
    model = AutoModelForCausalLM.from_pretrained(smashed)
    assert isinstance(model, SmashModel)
    ids = torch.tensor([PROMPTS[1]])
    assert model(ids).logits.shape == (1, 9, 260)


def test_options_that_would_be_ignored_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match="device_map"):
        AutoModelForCausalLM.from_pretrained(folders[1], device_map="auto")


class Recorder(TextStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer())
        self.chunks: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("mode", ["lossless", "ar", "trust"])
def test_transformers_generate_answers_in_macro_steps(mode: str) -> None:
    model = toy()
    model.generation_config.mode = mode
    model.generation_config.confidence = 0.4
    prompt = PROMPTS[1]
    settings = Settings(max_new_tokens=12, mode=mode, confidence=0.4)
    decoder = SmashDecoder(model, byte_tokenizer())
    assert_no_ties(decoder, [prompt], settings)
    answer = generate(decoder, [prompt], settings)[0]
    streamer = Recorder()
    ids = torch.tensor([prompt])
    found = model.generate(ids, max_new_tokens=12, do_sample=False, streamer=streamer)
    assert found[0].tolist() == [*prompt, *answer.tokens]
    assert streamer.chunks == [prompt, *map(list, answer.steps)]
    assert streamer.ended


def test_transformers_generate_has_the_trees_size_from_its_config() -> None:
    model = toy()
    model.generation_config.mode = "lossless"
    model.generation_config.tree = 1
    model.generation_config.lookup = 0
    streamer = Recorder()
    model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=9, do_sample=False, streamer=streamer)
    assert [len(chunk) for chunk in streamer.chunks[1:]] == [1] * 9
    model.generation_config.tree = 0
    with pytest.raises(ConfigError, match="tree is 0"):
        model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=9, do_sample=False)


def test_transformers_generate_takes_padded_batches_and_end_tokens() -> None:
    model = toy()
    model.generation_config.mode = "lossless"
    model.generation_config.confidence = 0.2
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[258] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    plain = PlainDecoder(model.base, byte_tokenizer())
    assert_no_ties(plain, PROMPTS, Settings(max_new_tokens=9))
    free = generate(plain, PROMPTS, Settings(max_new_tokens=9))
    end = free[0].tokens[4]
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=[end, 250],
        pad_token_id=258,
    )  # fmt: skip
    for row, answer in zip(found[:, width:].tolist(), free, strict=True):
        length = answer.tokens.index(end) + 1 if end in answer.tokens else 9
        expected = [*answer.tokens[:length], *[258] * (9 - length)]
        assert row == expected[: len(row)]


def text_of(tokens: torch.Tensor) -> str:
    return byte_tokenizer().decode(tokens)


def test_transformers_processors_and_criteria_are_heard() -> None:
    model = toy()
    decoder = SmashDecoder(model, byte_tokenizer())
    ids = torch.tensor([PROMPTS[1]])
    for mode in ("trust", "lossless"):
        settings = Settings(max_new_tokens=14, mode=mode, confidence=0.1)
        assert_no_ties(decoder, PROMPTS[1:2], settings)
        model.generation_config.mode = mode
        model.generation_config.confidence = 0.1
        options = {"max_new_tokens": 14, "do_sample": False}
        base = GenerationConfig(no_repeat_ngram_size=2, pad_token_id=258, **options)
        expected = model.base.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=base
        )
        found = model.generate(ids, no_repeat_ngram_size=2, **options)
        answer = found[0].tolist()
        pairs = list(pairwise(answer))
        assert len(set(pairs)) == len(pairs)
        if mode == "lossless":
            assert answer == expected[0].tolist()  # no two tokens are near to equally likely
        whole = model.generate(ids, **options)[0, 9:]
        word = next(
            word for i in range(4, 13) if "\ufffd" not in (word := text_of(whole[i : i + 2]))
        )
        stopped = model.generate(ids, stop_strings=[word], tokenizer=byte_tokenizer(), **options)[
            0, 9:
        ]
        assert text_of(stopped).endswith(word)
        assert stopped.tolist() == whole.tolist()[: len(stopped)]


def test_transformers_generate_samples_by_its_seed() -> None:
    model = toy()
    ids = torch.tensor([PROMPTS[1]])
    answers = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        answers.append(model.generate(ids, max_new_tokens=12, do_sample=True, top_k=50).tolist())
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    "option",
    [{"return_dict_in_generate": True}, {"use_cache": False}, {"inputs_embeds": True}],
)
def test_transformers_options_that_would_be_ignored_are_refused(option: dict[str, object]) -> None:
    model = toy()
    ids = torch.tensor([PROMPTS[1]])
    if "inputs_embeds" in option:
        option = {"inputs_embeds": model.embed(ids)}
    with pytest.raises((ConfigError, LightstrideError)):
        model.generate(ids, max_new_tokens=3, do_sample=False, **option)
