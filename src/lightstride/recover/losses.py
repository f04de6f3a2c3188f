"""KL from the teacher's remembered top k to the student, with its gradient, a slice at a time.

With q the student's distribution, p the teacher's over its k likeliest tokens, and p_rest, q_rest
the mass of all the others, the loss of a position (`training/top_k_kl.py`) and its gradient in
the student's logits z are

    KL = sum_i p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest)
    dKL/dz_i = s q_i - p_i                       for the k,   s = sum_i p_i + p_rest
    dKL/dz_j = (s - p_rest / q_rest) q_j         for all others

so one softmax gives both.  The two products with the head run over as many rows as fill them;
what is elementwise runs over rows that a core keeps close.  The plain twin is autograd through
`top_k_kl.divergence`.

Shapes: N positions, R rows of a product, C of them kept close, D hidden size, V vocabulary,
K remembered tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightstride.models.sliced_logits import cached_rows
from lightstride.training.top_k_kl import SMALLEST, Teacher

PRODUCT_ROWS = 256
"""Rows of a product with the head: enough for its full speed."""


def top_k_loss(head: nn.Module, hidden_ND: Tensor, said: Teacher, weights_N: Tensor) -> Tensor:
    """Weighted sum of KL(teacher | student) over all positions, in nats; a scalar in fp32.

    Its gradient reaches the hidden states, and the head's weights where they learn.
    """
    weight_VD, bias_V = head.weight, getattr(head, "bias", None)
    assert isinstance(weight_VD, Tensor)
    total = Sliced.apply(hidden_ND, weight_VD, bias_V, said, weights_N)  # type: ignore[no-untyped-call]
    assert isinstance(total, Tensor)
    return total


class Sliced(torch.autograd.Function):
    """The sum, whose gradient is computed with it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        said: Teacher,
        weights_N: Tensor,
    ) -> Tensor:
        """The sum."""
        gradient_ND = torch.empty_like(hidden_ND)
        learns = weight_VD.requires_grad
        gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if learns else None
        total = torch.zeros((), device=hidden_ND.device)
        for start in range(0, len(hidden_ND), PRODUCT_ROWS):
            rows = slice(start, start + PRODUCT_ROWS)
            logits_RV = nn.functional.linear(hidden_ND[rows], weight_VD, bias_V)
            total += in_place(logits_RV, said.rows(rows), weights_N[rows])
            torch.mm(logits_RV, weight_VD, out=gradient_ND[rows])
            if gradient_VD is not None:
                gradient_VD += logits_RV.T @ hidden_ND[rows]
        found = None if gradient_VD is None else gradient_VD.to(weight_VD.dtype)
        ctx.save_for_backward(gradient_ND, found)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradient, kept from the forward."""
        gradient_ND, gradient_VD = ctx.saved_tensors
        outer_VD = None if gradient_VD is None else gradient_VD * outer.to(gradient_VD.dtype)
        return gradient_ND * outer.to(gradient_ND.dtype), outer_VD, None, None, None


def in_place(logits_RV: Tensor, said: Teacher, weights_R: Tensor) -> Tensor:
    """Weighted sum of the losses, a scalar; the logits become their gradient."""
    step = cached_rows(logits_RV)
    sums = []
    for start in range(0, len(logits_RV), step):
        rows = slice(start, start + step)
        part = said.rows(rows)
        losses_C, gradient_CV = with_gradient(logits_RV[rows], part)
        sums.append((losses_C * weights_R[rows]).sum())
        logits_RV[rows] = gradient_CV.mul_(weights_R[rows, None])
    return torch.stack(sums).sum()


def with_gradient(logits_CV: Tensor, said: Teacher) -> tuple[Tensor, Tensor]:
    """KL of each position, (C,), and its gradient in the logits, (C, V), both in fp32."""
    token_CK = said.token_NK.long()
    log_p_CK = said.log_probability_NK.float()
    p_CK = log_p_CK.exp()
    q_CV = logits_CV.softmax(1, dtype=torch.float32)
    q_CK = q_CV.gather(1, token_CK)
    log_total_C1 = logits_CV.amax(1, keepdim=True).float() - q_CV.amax(1, keepdim=True).log()
    log_q_CK = logits_CV.gather(1, token_CK).float() - log_total_C1
    losses_C = (p_CK * (log_p_CK - log_q_CK)).sum(1)
    mass_C1 = p_CK.sum(1, keepdim=True)
    if token_CK.shape[1] < logits_CV.shape[1]:
        log_rest_C = said.log_rest_N
        q_rest_C = 1 - q_CK.sum(1)
        resolved_C = q_rest_C.clamp_min(SMALLEST)
        losses_C = losses_C + log_rest_C.exp() * (log_rest_C - resolved_C.log())
        mass_C1 = mass_C1 + log_rest_C.exp()[:, None]
        pull_C = (log_rest_C.exp() / resolved_C).where(q_rest_C > SMALLEST, 0)
        q_CV.mul_(mass_C1 - pull_C[:, None])
    else:
        q_CV.mul_(mass_C1)
    return losses_C, q_CV.scatter_(1, token_CK, mass_C1 * q_CK - p_CK)
