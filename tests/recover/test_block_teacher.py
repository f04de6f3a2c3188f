"""A teacher that is read block by block says the same bits, for many rows at a time."""

from itertools import count
from pathlib import Path

import pytest
import torch

from helpers.agree import assert_same_weights
from helpers.cuts import VARIANTS
from helpers.healing import WINDOWS, cut
from helpers.toys import tiny_llama
from lightstride.models import passes
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.opening.streamed import open_streamed
from lightstride.recover import clock, loop
from lightstride.recover.block_teacher import BlockTeacher
from lightstride.recover.loop import Recovery, Rows, gradients, recover
from lightstride.recover.said import SaidRows
from lightstride.recover.teacher import Dense

ROWS = Rows.alike(WINDOWS)
LENGTH = WINDOWS.shape[1]
QUICK = Recovery(passes=2, learning_rate=3e-3, step_tokens=2 * LENGTH, save_minutes=0.0)


def teacher_of(source: WeightSource, kept: SaidRows, rows: int) -> BlockTeacher:
    seconds = count()
    most = rows * LENGTH
    return BlockTeacher(source, 4, kept, WINDOWS, most, lambda: float(next(seconds)))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows passed the first block together, each time."""
    found: list[int] = []
    original = passes.pass_block

    def note(source: object, index: int, block: object, pieces: list[object], to: object) -> None:
        found.extend([len(pieces)] if index == 0 else [])
        original(source, index, block, pieces, to)  # type: ignore[arg-type]

    monkeypatch.setattr(passes, "pass_block", note)
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_it_says_the_bits_of_a_model_in_memory(
    name: str, tmp_path: Path, readings: list[int]
) -> None:
    model = VARIANTS[name]()
    plain = Dense(model, adapter_for(model.config), top_k=4, kept=SaidRows(tmp_path / "a", 0))
    teacher = teacher_of(Resident(model), SaidRows(tmp_path / "b", 0), rows=5)
    teacher.expect(range(5))
    for numbers in ([0, 1], [2, 3], [4]):
        said = [each.say(numbers, WINDOWS[numbers]) for each in (teacher, plain)]
        for found, expected in zip(*said, strict=True):
            assert torch.equal(found.token_NK, expected.token_NK)
            assert torch.equal(found.log_probability_NK, expected.log_probability_NK)
            assert torch.equal(found.log_rest_N, expected.log_rest_N)
    assert readings == [5]


def test_rows_that_come_next_are_read_together_and_known_ones_are_not(
    tmp_path: Path, readings: list[int]
) -> None:
    kept = SaidRows(tmp_path, 1 << 20)
    teacher = teacher_of(Resident(tiny_llama()), kept, rows=4)
    order = [5, 3, 3, 7, 1, 0, 2]
    teacher.expect(order)
    teacher.say([5], WINDOWS[[5]])
    assert readings == [4]
    assert sorted(teacher.waiting) == [1, 3, 7]
    assert teacher.seconds_ahead == pytest.approx(0.75)
    for number in (3, 3, 7, 1):
        teacher.say([number], WINDOWS[[number]])
    assert readings == [4]
    assert teacher.seconds_ahead == 0
    kept.path(2).touch()
    teacher.expect(order[5:])
    teacher.say([0], WINDOWS[[0]])
    teacher.say([2], WINDOWS[[2]])  # a damaged file counts as not there
    assert readings == [4, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learning_from_it_gives_the_same_weights(
    dtype: torch.dtype, tmp_path: Path, readings: list[int]
) -> None:
    tiny_llama().save_pretrained(tmp_path / "dense")
    dense = load_model(str(tmp_path / "dense"), dtype=dtype)
    source = open_streamed(str(tmp_path / "dense"), dtype=dtype)
    adapter = adapter_for(dense.config)
    one, other, small = (cut(dense) for _ in range(3))
    recover(one, dense, adapter, ROWS, QUICK, tmp_path / "one")
    recover(other, source, adapter, ROWS, QUICK, tmp_path / "other")
    assert readings == [12]
    assert_same_weights(other, one)
    few = Recovery(**{**vars(QUICK), "cache_bytes": 0, "ahead_tokens": 5 * LENGTH})
    recover(small, source, adapter, ROWS, few, tmp_path / "small")
    assert readings[1:] == [5, 5, 5, 5, 5, 2]  # what comes twice within five is read twice
    assert_same_weights(small, one)


def test_a_killed_run_asks_for_no_row_twice(
    tmp_path: Path, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama()
    adapter = adapter_for(dense.config)
    whole, resumed = cut(dense), cut(dense)
    recover(whole, dense, adapter, ROWS, QUICK, tmp_path / "whole")
    calls = iter(range(3))

    def interrupted(*arguments: object) -> float:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return gradients(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recover(cut(dense), Resident(dense), adapter, ROWS, QUICK, tmp_path / "killed")
    recover(resumed, Resident(dense), adapter, ROWS, QUICK, tmp_path / "killed")
    assert readings == [12]
    assert_same_weights(resumed, whole)


def test_rows_beyond_the_minutes_are_not_read(
    tmp_path: Path, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    pass_block = passes.pass_block

    def reading(source: object, index: int, *others: object) -> None:
        nonlocal seconds
        pass_block(source, index, *others)  # type: ignore[arg-type]
        seconds += 1 + 0.1 * readings[-1] if index == 0 else 0

    def step(*arguments: object) -> float:
        nonlocal seconds
        seconds += 1
        return gradients(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(passes, "pass_block", reading)
    monkeypatch.setattr(loop, "gradients", step)
    for module in (loop, clock):
        monkeypatch.setattr(module, "now", lambda _: seconds)
    timed = Recovery(
        passes=50, minutes=1.0, step_tokens=LENGTH, cache_bytes=0, ahead_tokens=8 * LENGTH
    )
    dense = tiny_llama()
    at = recover(cut(dense), Resident(dense), adapter_for(dense.config), ROWS, timed, tmp_path)
    assert readings[:3] == [1, 8, 8]
    assert at.step <= sum(readings) <= at.step + 2
    assert at.seconds == pytest.approx(60, abs=2.5)
