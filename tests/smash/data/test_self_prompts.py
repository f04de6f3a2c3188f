"""Prompts of the model's own: seeded, distinct, ended by itself, and kept batch by batch."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.errors import DataError, ModelError, WorkError
from lightstride.generate import PlainDecoder, generate
from lightstride.smash.data import self_prompts as module
from lightstride.smash.data.self_prompts import end_of_turn, self_prompts, user_opening, user_turns

LETTERS = [ord(letter) for letter in "abcdefgh ij klmn"]


def writing_llama() -> PreTrainedModel:
    """A toy that writes letters and end tokens, nothing else."""
    model = tiny_llama(tied=False)
    head = model.get_output_embeddings()
    said = torch.tensor([*LETTERS, byte_tokenizer().eos_token_id])
    with torch.no_grad():
        kept = head.weight[said].clone()
        head.weight.zero_()
        head.weight[said] = kept
    head.register_forward_hook(lambda _, __, logits: only(logits, said))
    return model


def only(logits: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Logits with everything else made impossible."""
    allowed = torch.zeros(logits.shape[-1], dtype=torch.bool).index_fill(0, said, True)
    return logits.masked_fill(~allowed, -1e4)


def test_turns_begin_where_the_users_words_do() -> None:
    tokenizer = byte_tokenizer()
    message = [{"role": "user", "content": "Hi"}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False))
    opening = str(tokenizer.decode(user_opening(tokenizer).tokens))
    assert text.startswith(opening + "Hi")
    assert text.removeprefix(opening + "Hi").strip() == end_of_turn(tokenizer)


def test_prompts_are_distinct_finished_and_seeded() -> None:
    model, tokenizer = writing_llama(), byte_tokenizer()
    found = self_prompts(model, tokenizer, 20, batch_size=16)
    assert len({prompt.id for prompt in found}) == 20
    texts = [prompt.messages[0].content for prompt in found]
    assert all(len(text) >= module.SHORTEST_PROMPT and text == text.strip() for text in texts)
    assert all(set(text) <= {chr(letter) for letter in LETTERS} for text in texts)
    assert self_prompts(model, tokenizer, 20, batch_size=16) == found
    assert self_prompts(model, tokenizer, 5, batch_size=16) == found[:5]
    assert self_prompts(model, tokenizer, 20, batch_size=16, seed=1) != found


def test_turns_without_an_end_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PlainDecoder(writing_llama(), byte_tokenizer())
    opening, end = user_opening(decoder.tokenizer), end_of_turn(decoder.tokenizer)
    many = user_turns(decoder, opening, end, 32, draw=(0, 0))
    monkeypatch.setattr(module, "LONGEST", 12)
    few = user_turns(decoder, opening, end, 32, draw=(0, 0))
    assert len(few) < len(many)
    assert all(len(text) <= 12 for text in few)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = writing_llama(), byte_tokenizer()

    def write(name: str) -> list[str]:
        found = self_prompts(model, tokenizer, 40, batch_size=8, folder=tmp_path / name)
        return [prompt.id for prompt in found]

    whole = write("whole")
    calls = 0

    def dying(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        write("killed")
    path = tmp_path / "killed" / "self.jsonl"
    path.write_bytes(path.read_bytes() + b'["half a ')
    assert write("killed") == whole
    assert path.read_bytes() == (tmp_path / "whole" / "self.jsonl").read_bytes()
    assert calls == 3 + len(path.read_text().splitlines()) - 1 - 2


def test_bad_input(tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    model = writing_llama()
    self_prompts(model, tokenizer, 1, batch_size=8, folder=tmp_path)
    with pytest.raises(WorkError, match="of another base, seed or batch size"):
        self_prompts(model, tokenizer, 1, batch_size=8, seed=1, folder=tmp_path)
    path = tmp_path / "self.jsonl"
    path.write_text(path.read_text() + "half a line\n")
    with pytest.raises(WorkError, match=r"self\.jsonl is damaged: delete it"):
        self_prompts(model, tokenizer, 1, batch_size=8, folder=tmp_path)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template that shows where"):
        self_prompts(model, tokenizer, 1)


def test_a_model_that_always_says_the_same_is_given_up() -> None:
    model = writing_llama()
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: 1000 * logits)
    with pytest.raises(DataError, match=r"wrote only . different prompts of the 100 wanted"):
        self_prompts(model, byte_tokenizer(), 100, batch_size=4)


def test_the_file_has_a_line_a_batch(tmp_path: Path) -> None:
    self_prompts(writing_llama(), byte_tokenizer(), 3, batch_size=8, folder=tmp_path)
    header, *batches = (tmp_path / "self.jsonl").read_text().splitlines()
    assert json.loads(header)["seed"] == 0
    assert all(isinstance(text, str) for line in batches for text in json.loads(line))
