"""Answers that loop."""

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.evaluate.loops import is_loop, looping_share, repeats
from lightstride.generate import PlainDecoder


def test_a_run_four_times_is_a_loop() -> None:
    assert is_loop([1, 2, 3, 4] * 4)
    assert is_loop([7] * 7)
    assert not is_loop([1, 2, 3, 4] * 3 + [1, 2, 3])
    assert not is_loop([1, 2])


def test_a_token_repeats_where_its_run_comes_the_third_time() -> None:
    assert repeats([1, 2, 3, 4] * 3) == [False] * 11 + [True]
    assert repeats([7] * 7) == [False] * 5 + [True] * 2
    assert not any(repeats([1, 2, 3]))


def test_shares_are_of_all_answers() -> None:
    found = looping_share(PlainDecoder(tiny_llama(), byte_tokenizer()), [[1, 2, 3]] * 3)
    assert found["answers"] == 3
    assert 0 <= found["loops"] <= 1
    assert 0 <= found["ended"] <= 1
