"""Blocks that compute their activations again: the same gradients, and the bytes that are said."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.cuts import VARIANTS
from helpers.healing import WINDOWS, cut
from helpers.toys import tiny_llama
from lightstride.models.families.registry import adapter_for
from lightstride.recover.loop import Recovery, Rows, gradients, needed
from lightstride.recover.said import SaidRows
from lightstride.recover.student import Learning, Student
from lightstride.recover.teacher import Dense

ROWS = Rows.alike(WINDOWS)


@pytest.mark.parametrize(
    ("variant", "rank"), [*((name, 0) for name in sorted(VARIANTS)), ("llama", 2)]
)
def test_the_gradients_are_the_same(variant: str, rank: int, tmp_path: Path) -> None:
    dense = VARIANTS[variant]()
    adapter = adapter_for(dense.config)
    teacher = Dense(dense, adapter, top_k=8, kept=SaidRows(tmp_path, 0))
    losses, found = [], []
    for again in (False, True):
        learning = Learning(rank=rank, checkpoint_activations=again)
        student = Student(cut(dense), adapter, learning)
        losses.append(gradients(student, teacher, ROWS, [0, 1]))
        found.append([parameter.grad for parameter in student.learned()])
        student.release()
        assert not any("forward" in vars(part) for part in student.modules())
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def kept_bytes(student: Student, tokens_BL: Tensor) -> int:
    """What a forward keeps, all of it at once, but weights."""
    lasting = {t.untyped_storage().data_ptr() for t in (*student.parameters(), *student.buffers())}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in lasting:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = student.hidden(tokens_BL)
    assert found.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_that_are_said_are_kept(dtype: torch.dtype) -> None:
    dense = tiny_llama(num_layers=6).to(dtype)
    adapter = adapter_for(dense.config)
    student = Student(cut(dense), adapter, Learning())
    said = student.activation_bytes(WINDOWS[:1])
    assert kept_bytes(student, WINDOWS[:1]) == pytest.approx(said, rel=0.1)
    assert kept_bytes(student, WINDOWS[:4]) == pytest.approx(4 * said, rel=0.1)
    again = Student(cut(dense), adapter, Learning(checkpoint_activations=True))
    inputs = 6 * WINDOWS.shape[1] * dense.config.hidden_size * dtype.itemsize
    assert inputs + said / 7 < again.activation_bytes(WINDOWS[:1]) < inputs + said / 4
    assert kept_bytes(again, WINDOWS[:1]) == pytest.approx(inputs, rel=0.4)


def test_counting_holds_on_to_no_weights() -> None:
    smaller = cut(tiny_llama(num_layers=2))
    adapter = adapter_for(smaller.config)
    needed(smaller, adapter, ROWS, Recovery(), Learning())
    counted = [weakref.ref(weight) for weight in adapter.blocks(smaller).parameters()]
    Student(smaller, adapter, Learning())
    assert not any(weight() is not None for weight in counted)
