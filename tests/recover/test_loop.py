"""Recovery of toys: closer to the dense model, exact after a kill, unharmed by bad steps."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.agree import assert_same_weights
from helpers.cuts import VARIANTS
from helpers.divergence import plain_divergence
from helpers.healing import WINDOWS, cut, distance
from helpers.toys import tiny_llama
from lightstride.errors import ConfigError, WorkError
from lightstride.models.families.registry import adapter_for
from lightstride.recover import loop as room
from lightstride.recover.loop import (
    Memory,
    OptimizerName,
    Recovery,
    Rows,
    gradients,
    recover,
    steps_of,
)
from lightstride.recover.optimizer import MasterAdam
from lightstride.recover.said import SaidRows
from lightstride.recover.student import Learning, Student
from lightstride.recover.teacher import Dense
from lightstride.training.checkpoint import TrainingFolder

ROWS = Rows.alike(WINDOWS)
QUICK = Recovery(passes=4, learning_rate=3e-3, step_tokens=96, save_minutes=0.0)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_cut_model_comes_closer_to_the_dense_one(variant: str, tmp_path: Path) -> None:
    dense = VARIANTS[variant]().to(torch.bfloat16)
    smaller = cut(dense)
    before, untouched = distance(dense, smaller, WINDOWS), weights(dense)
    progress = recover(smaller, dense, adapter_for(dense.config), ROWS, QUICK, tmp_path)
    assert progress.step == 12
    assert distance(dense, smaller, WINDOWS) < 0.8 * before
    assert all(torch.equal(tensor, untouched[n]) for n, tensor in weights(dense).items())
    assert {parameter.dtype for parameter in smaller.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in smaller.parameters())


@pytest.mark.parametrize("variant", ["llama", "qwen3_moe"])
def test_a_factored_second_moment_learns_as_well_in_half_the_memory(
    variant: str, tmp_path: Path
) -> None:
    dense = VARIANTS[variant]().to(torch.bfloat16)
    found: list[float] = []
    needed: list[Memory] = []
    names: tuple[OptimizerName, ...] = ("adam", "factored")
    for name in names:
        smaller, quick = cut(dense), replace(QUICK, optimizer=name)
        adapter = adapter_for(dense.config)
        recover(smaller, dense, adapter, ROWS, quick, tmp_path / name, announce=needed.append)
        found.append(distance(dense, smaller, WINDOWS))
    assert found[1] < 1.1 * found[0]
    assert needed[1].optimizer < 0.55 * needed[0].optimizer


@pytest.mark.parametrize("rank", [0, 4])
def test_updates_of_low_rank_are_merged(rank: int, tmp_path: Path) -> None:
    dense = tiny_llama()
    adapter, smaller = adapter_for(dense.config), cut(dense)
    before = distance(dense, smaller, WINDOWS)
    names = set(smaller.state_dict())
    quick = Recovery(passes=4, learning_rate=1e-2, step_tokens=96)
    recover(smaller, dense, adapter, ROWS, quick, tmp_path, learning=Learning(rank=rank))
    assert set(smaller.state_dict()) == names
    assert distance(dense, smaller, WINDOWS) < 0.9 * before


def test_the_head_learns_where_that_is_wanted(tmp_path: Path) -> None:
    dense = tiny_llama(tied=False)
    adapter, smaller = adapter_for(dense.config), cut(dense)
    smaller.lm_head.weight = torch.nn.Parameter(smaller.lm_head.weight.detach().clone())
    recover(smaller, dense, adapter, ROWS, QUICK, tmp_path, learning=Learning(head=True))
    assert not torch.equal(smaller.lm_head.weight, dense.lm_head.weight)


def test_the_gradient_is_that_of_whole_logits(tmp_path: Path) -> None:
    dense = tiny_llama(num_layers=2)
    adapter = adapter_for(dense.config)
    smaller, twin = cut(dense), cut(dense)
    student = Student(smaller, adapter, Learning())
    teacher = Dense(dense, adapter, top_k=260, kept=SaidRows(tmp_path, 0))
    positions_NL = torch.rand(WINDOWS.shape)
    positions_NL[:, ::3] = 0
    ruled_out_NL = torch.where(positions_NL > 0.7, dense(WINDOWS).logits.argmax(2), -1)
    rows = Rows(WINDOWS, positions_NL, ruled_out_NL)
    loss = gradients(student, teacher, rows, list(range(len(WINDOWS))))
    for block in adapter.blocks(twin):
        block.requires_grad_(True)
    says, said = (m(WINDOWS).logits.flatten(0, 1) for m in (twin, dense))
    said = said.detach().clone()
    where = (ruled_out_NL >= 0).flatten()
    said[where, ruled_out_NL.flatten()[where]] = -40.0
    plain = (plain_divergence(said, says) * positions_NL.flatten()).sum()
    plain = plain / positions_NL.sum()
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-3)
    found = {name: p.grad for name, p in adapter.blocks(smaller).named_parameters()}
    for name, parameter in adapter.blocks(twin).named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-2, atol=1e-4)


def test_the_teacher_is_asked_once_and_says_the_same(tmp_path: Path) -> None:
    dense = tiny_llama()
    kept = SaidRows(tmp_path / "said", 2 * 24 * 28 + 1000)
    teacher = Dense(dense, adapter_for(dense.config), top_k=4, kept=kept)
    first = teacher.say([0, 1, 2, 3], WINDOWS[:4])
    assert sorted(path.stem for path in kept.folder.iterdir()) == ["0", "1"]
    for number, said in enumerate(first):
        (again,) = teacher.say([number], WINDOWS[number : number + 1])
        assert torch.equal(again.token_NK, said.token_NK)
        assert torch.equal(again.log_probability_NK, said.log_probability_NK)


def test_every_pass_reads_every_row_once_in_an_order_of_its_own() -> None:
    two = Recovery(passes=2, step_tokens=30)
    steps = steps_of(7, 10, two)
    assert [len(step) for step in steps] == [3, 3, 1] * 2
    first, second = ([n for step in part for n in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert steps == steps_of(7, 10, two)


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [(torch.float32, "adam"), (torch.bfloat16, "adam"), (torch.bfloat16, "factored")],
)
def test_killed_at_any_moment_and_resumed_gives_the_same_weights(
    dtype: torch.dtype,
    optimizer: OptimizerName,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = tiny_llama(num_layers=2).to(dtype)
    adapter = adapter_for(dense.config)
    whole, quick = cut(dense), replace(QUICK, optimizer=optimizer)
    recover(whole, dense, adapter, ROWS, quick, tmp_path / "whole")
    for moment in (1, 5, 8, 12):
        calls, folder = 0, tmp_path / f"killed-{moment}"

        def interrupted(*arguments: object, after: int = moment) -> float:
            nonlocal calls
            calls += 1
            if calls == after:
                raise KeyboardInterrupt
            return gradients(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(room, "gradients", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recover(cut(dense), dense, adapter, ROWS, quick, folder)
        resumed = cut(dense)
        recover(resumed, dense, adapter, ROWS, quick, folder)
        assert_same_weights(resumed, whole)


def test_a_step_that_is_not_finite_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama()
    adapter = adapter_for(dense.config)
    calls = 0

    def spoiled(student: Student, *arguments: object) -> float:
        nonlocal calls
        calls += 1
        loss = gradients(student, *arguments)  # type: ignore[arg-type]
        if calls in (2, 5) or calls > 8:
            student.learned()[0].grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(room, "gradients", spoiled)
    smaller = cut(dense)
    with pytest.raises(ConfigError, match="5 steps in a row"):
        recover(smaller, dense, adapter, ROWS, Recovery(passes=9, step_tokens=96), tmp_path)
    assert all(parameter.isfinite().all() for parameter in smaller.parameters())


def test_minutes_end_it_cleanly(tmp_path: Path) -> None:
    dense = tiny_llama()
    timed = Recovery(passes=10_000, minutes=0.02, step_tokens=96, save_minutes=0.005)
    start = time.monotonic()
    at = recover(cut(dense), dense, adapter_for(dense.config), ROWS, timed, tmp_path)
    assert time.monotonic() - start < 20
    assert 0 < at.step < 30_000
    assert at.pace


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    dense = tiny_llama(num_layers=2)
    adapter = adapter_for(dense.config)
    recover(cut(dense), dense, adapter, ROWS, QUICK, tmp_path)
    other = Student(cut(tiny_llama(num_layers=3)), adapter, Learning())
    optimizer = MasterAdam([{"params": other.learned()}])
    with pytest.raises(WorkError, match="another training"):
        TrainingFolder(tmp_path).load(other, optimizer)
