"""Whose prompt is read next."""

from types import SimpleNamespace

import pytest

from lightstride.generate.session import Limits
from lightstride.generate.turns import Turn, Turns


def rows(*left: int) -> list:
    """Rows of which so many tokens are left to read."""
    return [
        SimpleNamespace(left_to_read=each, number=n, gave_way=False) for n, each in enumerate(left)
    ]


def test_rows_of_about_one_length_are_read_together() -> None:
    turns = Turns(Limits(chunk=1000, together=1000))
    assert turns.next(rows(60, 240, 50, 55, 200)) == Turn([2, 3, 0], 60)
    assert turns.next(rows(240, 200)) == Turn([1, 0], 240)


def test_no_more_than_the_limit_are_read_together() -> None:
    assert Turns(Limits(chunk=64, together=128)).next(rows(50, 50, 50)) == Turn([0, 1], 50)


@pytest.mark.parametrize("left", [1, 2000])
def test_a_row_alone_is_read(left: int) -> None:
    assert Turns(Limits(chunk=64, together=32)).next(rows(left)) == Turn([0], min(left, 64))


def test_a_long_prompt_has_every_other_turn() -> None:
    turns = Turns(Limits(chunk=10, together=100))
    waiting = rows(100, 5, 5)
    assert [turns.next(waiting).members[0] for _ in range(4)] == [1, 0, 1, 0]


def test_a_prompt_of_several_chunks_overtakes_one_that_is_twice_as_long() -> None:
    turns = Turns(Limits(chunk=10))
    assert [turns.next(rows(100, 50)).members for _ in range(4)] == [[1], [0], [1], [0]]
    assert [turns.next(rows(100, 51)).members for _ in range(2)] == [[0], [0]]


def test_where_nobody_answers_chunks_are_long_and_give_way() -> None:
    turns = Turns(Limits(chunk=10, long_chunk=40))
    first, second = waiting = rows(100, 30)
    assert turns.next([first], may_be_long=True) == Turn([0], 40, gives_way=True)
    turns.give_way(first)
    assert turns.next(waiting, may_be_long=True) == Turn([1], 30, gives_way=True)
    assert turns.next(waiting, may_be_long=True) == Turn([0], 10)
    second.left_to_read = 5
    assert turns.next(waiting, may_be_long=True) == Turn([1], 5)
