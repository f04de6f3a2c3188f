"""Text as it grows: stop strings, held-back pieces, unfinished characters."""

from collections.abc import Sequence

import pytest

from helpers.toys import byte_tokenizer
from lightstride.generate.detokenize import TextStream


def feed(text: str, stop: Sequence[str]) -> tuple[list[str], bool]:
    stream = TextStream(byte_tokenizer(), stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.feed(byte))
        if stream.stopped:
            break
    return [*pieces, stream.flush()], stream.stopped


@pytest.mark.parametrize("offset", range(12))
def test_text_ends_before_a_stop_string_wherever_it_is(offset: int) -> None:
    text = "é" * (offset // 2) + "a" * (offset % 2) + "<end>tail"
    pieces, stopped = feed(text, ["<end>", "never"])
    assert stopped
    assert "".join(pieces) == text[: text.index("<end>")]


def test_text_held_back_as_a_possible_stop_string_is_shown_after_all() -> None:
    pieces, stopped = feed("a<<en<end€", ["<end>"])
    assert not stopped
    assert "".join(pieces) == "a<<en<end€"
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    stream = TextStream(byte_tokenizer(), [])
    assert [stream.feed(byte) for byte in "€".encode()[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"
