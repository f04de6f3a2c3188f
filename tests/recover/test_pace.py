"""Schedules counted in steps and in minutes."""

import pytest

from lightstride.recover.pace import counted, read_pace, timed


def test_steps_are_equal_shares() -> None:
    pace = counted(4)
    assert [pace.share(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [pace.steps_left(step) for step in range(6)] == [4, 3, 2, 1, 1, 1]


def test_minutes_stretch_what_is_left() -> None:
    pace = timed(counted(1000), 10, seconds_left=90, seconds_a_step=1, most=500)
    assert pace.share(10) == pytest.approx(0.01)
    assert pace.share(100) == pytest.approx(1)
    assert pace.share(55) == pytest.approx(0.01 + 0.99 / 2)


def test_a_plan_that_is_nearly_right_stays() -> None:
    pace = counted(100)
    assert timed(pace, 20, seconds_left=84, seconds_a_step=1, most=500) is pace
    assert timed(pace, 20, seconds_left=60, seconds_a_step=1, most=500) is not pace
    assert timed(pace, 100, seconds_left=60, seconds_a_step=1, most=500) is pace


def test_passes_may_end_before_the_minutes() -> None:
    pace = timed(counted(1000), 10, seconds_left=900, seconds_a_step=1, most=30)
    assert pace.share(40) == pytest.approx(1)


def test_time_that_is_over_is_one_more_step() -> None:
    assert timed(counted(9), 3, seconds_left=-5, seconds_a_step=1, most=6).share(4) == 1


def test_the_checkpoint_keeps_it() -> None:
    pace = timed(counted(1000), 10, seconds_left=90, seconds_a_step=1, most=500)
    assert read_pace(pace.as_list) == pace
