"""Passages with a last word, from any text, and who can say it."""

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.errors import DataError
from lightstride.evaluate.block_reader import BlockReader
from lightstride.evaluate.last_words import last_word_accuracy, passages
from lightstride.generate import PlainDecoder
from lightstride.models.opening.source import Resident


def test_a_short_record_is_a_passage() -> None:
    assert passages(["He took the lamp to the lighthouse"], 9) == [
        ("He took the lamp to the", " lighthouse")
    ]


def test_a_record_of_openais_lambada_is_a_passage_with_its_line_breaks() -> None:
    text = 'It was cold.\n\n"Wait," he said. I do not care about signs'
    assert passages([text], 9) == [(text.removesuffix(" signs"), " signs")]
    with pytest.raises(DataError, match="no passage"):
        passages([f"{text}."], 9)


def test_a_long_text_ends_in_long_words_that_stood_before() -> None:
    text = " ".join(["lighthouse", *["a"] * 58, "sea", "lighthouse", *["b"] * 70])
    (found,) = passages([f"{text}\n{text[:5]}."], 9)
    assert found[1] == " lighthouse"
    assert len(found[0].split()) == 60
    assert "lighthouse" in found[0]


def test_a_text_without_such_words_is_refused() -> None:
    with pytest.raises(DataError, match="no passage"):
        passages(["a b\nc."], 3)


def test_every_passage_is_right_or_wrong() -> None:
    asked = [("He took the lamp to the", " x"), ("one two", " three")]
    model, tokenizer = tiny_llama(), byte_tokenizer()
    found = last_word_accuracy(PlainDecoder(model, tokenizer), asked, 512)
    assert last_word_accuracy(BlockReader(Resident(model), tokenizer), asked, 512) == found
    assert found in ([False, False], [True, False], [False, True], [True, True])
