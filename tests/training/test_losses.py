"""Losses in slices against losses written out."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from helpers.agree import TIE
from lightstride.training import losses
from lightstride.training.losses import divergence, in_slices, teacher_log_probabilities

torch.manual_seed(0)


HEAD = torch.randn(11, 6, requires_grad=True)


TEACHER_HEAD = torch.randn(11, 6)


STUDENT = torch.randn(17, 6, requires_grad=True)


TEACHER = torch.randn(6, 6).repeat_interleave(3, dim=0)[:17]


WEIGHTS = torch.rand(17)


def written_out(kind: str) -> torch.Tensor:
    total = torch.zeros(())
    for student, teacher, weight in zip(STUDENT, TEACHER, WEIGHTS, strict=True):
        ours, theirs = (HEAD @ student).log_softmax(-1), (TEACHER_HEAD @ teacher).softmax(-1)
        if kind == "kl":
            total = total + weight * (theirs * (theirs.log() - ours)).sum()
        else:
            total = total - weight * ours[theirs.argmax()]
    return total


@pytest.mark.parametrize("kind", ["kl", "ce"])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_slices_add_up_to_the_loss_and_its_gradients(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "SLICE_BYTES", 4 * 11 * rows)
    total, said = divergence(
        lambda v: F.linear(v, HEAD),
        STUDENT,
        TEACHER,
        WEIGHTS,
        kind=kind,
        parameters=(HEAD,),
        teacher_head=lambda v: F.linear(v, TEACHER_HEAD),
    )
    expected = written_out(kind)
    torch.testing.assert_close(total, expected)
    found = torch.autograd.grad(3 * total, (STUDENT, HEAD))
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, (STUDENT, HEAD)))
    logits = F.linear(STUDENT, HEAD)
    first, second = logits.topk(2).values.unbind(-1)
    assert (first - second).min() > TIE
    assert torch.equal(said, logits.argmax(-1))
    with torch.no_grad():
        again, _ = divergence(
            lambda v: F.linear(v, HEAD),
            STUDENT,
            TEACHER,
            WEIGHTS,
            kind=kind,
            teacher_head=lambda v: F.linear(v, TEACHER_HEAD),
        )
    torch.testing.assert_close(again, expected)


def test_equal_teachers_cost_one_row() -> None:
    rows: list[int] = []

    def head(vectors: torch.Tensor) -> torch.Tensor:
        rows.append(len(vectors))
        return F.linear(vectors, TEACHER_HEAD)

    found = teacher_log_probabilities(head, TEACHER)
    assert rows == [6]
    torch.testing.assert_close(found, F.linear(TEACHER, TEACHER_HEAD).log_softmax(-1))


def test_nothing_to_learn_is_no_loss() -> None:
    none = torch.zeros(0, 6, requires_grad=True)
    total, said = divergence(lambda v: F.linear(v, HEAD), none, none.detach(), torch.zeros(0))
    assert float(total.detach()) == 0
    assert said.shape == (0,)
    total.backward()


def test_slices_without_a_gradient_are_summed_alone() -> None:
    total = in_slices(lambda v, rows: (v * WEIGHTS[rows, None]).sum(), TEACHER, 5)
    torch.testing.assert_close(total, (TEACHER * WEIGHTS[:, None]).sum())
