"""Text that a model writes by itself: enough of it, the same for the same seed."""

import pytest
import torch

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.data import sampled
from lightstride.data.sampled import sample_documents, text_openings
from lightstride.data.windows import packed_windows
from lightstride.errors import DataError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "LENGTH", 64)


def test_enough_text_of_its_own() -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    documents = sample_documents(model, tokenizer, 1000, 0)
    packed = packed_windows("self", tokenizer, num_tokens=1000, window=50, documents=documents)
    assert packed.tokens_NL.shape == (20, 50)
    assert packed.source == "self"


def test_the_seed_decides_and_the_random_state_is_left_alone() -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = sample_documents(model, tokenizer, 300, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert sample_documents(model, tokenizer, 300, 0) == first
    assert sample_documents(model, tokenizer, 300, 1) != first


def test_a_model_that_says_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "_batch", lambda *_: [""])
    with pytest.raises(DataError, match="writes no text by itself"):
        sample_documents(tiny_llama(), byte_tokenizer(), 10, 0)


def test_a_chat_model_also_writes_conversations() -> None:
    tokenizer = byte_tokenizer()
    documents = sample_documents(tiny_llama(), tokenizer, 6000, 0)
    message = [{"role": "user", "content": "?"}]
    opening = tokenizer.apply_chat_template(message, tokenize=False).split("?")[0]
    chats = [text for text in documents if text.startswith(opening)]
    assert 0 < len(chats) < len(documents)
    assert tokenizer.encode(chats[0])[: len(tokenizer.encode(opening))] == tokenizer.encode(opening)
    tokenizer.chat_template = None
    assert [opening.is_chat for opening in text_openings(tokenizer)] == [False]


def test_a_start_token_that_the_tokenizer_adds_is_not_doubled() -> None:
    tokenizer = byte_tokenizer(add_bos=True)
    for text in sample_documents(tiny_llama(), tokenizer, 6000, 0):
        assert tokenizer.encode(text)[:2].count(tokenizer.bos_token_id) == 1


def test_needs_a_token_to_begin_with() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(DataError, match="start or an end token"):
        sample_documents(tiny_llama(), tokenizer, 10, 0)
