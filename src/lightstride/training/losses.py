"""Losses against a teacher's own distributions.

For a vector v that predicts a token, and the teacher's vector u for the same token, over a head
with rows W,

    KL:  sum_i p_i (log p_i - log q_i),   p = softmax(W u), q = softmax(W v)
    CE:  -log q_g,                         g = argmax p

Logits are made a slice at a time and never kept: the gradient of a slice is taken at once.  The
micro decoder is compared over its own vocabulary.

Shapes: J vectors to learn, D hidden size, V the head's vocabulary, R rows of a slice.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

LogitsOf = Callable[[Tensor], Tensor]
Loss = Literal["kl", "ce"]
Evaluate = Callable[[Tensor, slice], Tensor]

SLICE_BYTES = 4 * 2**20
"""Size of a slice of logits in fp32 on a CPU: it should stay in the cache."""
ACCELERATOR_SLICE_BYTES = 256 * 2**20


def divergence(
    head: LogitsOf,
    student_JD: Tensor,
    teacher_JD: Tensor,
    weights_J: Tensor,
    *,
    kind: Loss = "kl",
    parameters: Sequence[Tensor] = (),
    teacher_head: LogitsOf | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the losses of all vectors, and the ids, (J,), that the student says.

    Runs of equal teachers cost one row of logits.  `parameters` are the head's, if they learn;
    then the teacher has its own head.
    """
    said: list[Tensor] = []

    def evaluate(student_RD: Tensor, rows: slice) -> Tensor:
        logits_RV = head(student_RD).float()
        said.append(logits_RV.detach().argmax(-1))
        target_RV = teacher_log_probabilities(teacher_head or head, teacher_JD[rows])
        if kind == "ce":
            losses_R = cross_entropy(logits_RV, target_RV.argmax(-1), reduction="none")
        else:
            ours_RV = logits_RV.log_softmax(-1)
            losses_R = kl_div(ours_RV, target_RV, reduction="none", log_target=True).sum(-1)
        return (losses_R * weights_J[rows]).sum()

    if not len(student_JD):
        return student_JD.float().sum(), torch.zeros(0, dtype=torch.long, device=student_JD.device)
    with torch.no_grad():
        vocab_size = head(student_JD[:1]).shape[-1]
    limit = SLICE_BYTES if student_JD.device.type == "cpu" else ACCELERATOR_SLICE_BYTES
    total = in_slices(evaluate, student_JD, max(1, limit // (4 * vocab_size)), parameters)
    return total, torch.cat(said)


@torch.no_grad()
def teacher_log_probabilities(head: LogitsOf, teacher_RD: Tensor) -> Tensor:
    """The base's log-probabilities, (R, V); a row that repeats the one before costs no logits."""
    is_new_R = torch.ones(len(teacher_RD), dtype=torch.bool, device=teacher_RD.device)
    is_new_R[1:] = (teacher_RD[1:] != teacher_RD[:-1]).any(-1)
    return head(teacher_RD[is_new_R]).float().log_softmax(-1)[is_new_R.cumsum(0) - 1]


def in_slices(
    evaluate: Evaluate, vectors_JD: Tensor, step: int, parameters: Sequence[Tensor] = ()
) -> Tensor:
    """Sum of `evaluate(vectors[rows], rows)` over slices of rows, with its gradient."""
    learn = tuple(p for p in parameters if p.requires_grad)
    if not torch.is_grad_enabled() or not (vectors_JD.requires_grad or learn):
        slices = [
            slice(start, min(start + step, len(vectors_JD)))
            for start in range(0, len(vectors_JD), step)
        ]
        return torch.stack([evaluate(vectors_JD[rows], rows) for rows in slices]).sum()
    total = SlicedSum.apply(evaluate, step, vectors_JD, *learn)  # type: ignore[no-untyped-call]
    assert isinstance(total, Tensor)
    return total


class SlicedSum(torch.autograd.Function):
    """A sum over slices whose gradient is computed with it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        evaluate: Evaluate,
        step: int,
        vectors_JD: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """The sum."""
        gradients = [torch.zeros_like(tensor) for tensor in (vectors_JD, *parameters)]
        total = torch.zeros((), device=vectors_JD.device)
        for start in range(0, len(vectors_JD), step):
            rows = slice(start, min(start + step, len(vectors_JD)))
            with torch.enable_grad():
                piece_RD = vectors_JD[rows].detach().requires_grad_()
                loss = evaluate(piece_RD, rows)
                found = torch.autograd.grad(loss, (piece_RD, *parameters))
            total += loss.detach()
            gradients[0][rows] = found[0]
            for gradient, part in zip(gradients[1:], found[1:], strict=True):
                gradient += part
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradient, kept from the forward."""
        return (None, None, *(gradient * outer for gradient in ctx.saved_tensors))
