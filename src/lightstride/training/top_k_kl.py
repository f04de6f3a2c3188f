"""How far a student's next-token distribution is from its teacher's, from the teacher's top k.

For every token the teacher's k likeliest tokens are outcomes of their own and all the others
together are one more: KL = sum_i p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest).
That is a lower bound of the divergence over the whole vocabulary, and near it once the k hold
most of the mass.

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), eq. 6.  We differ: it forgets the
rest and renormalizes over the k alone (`renormalize=True`), so that mass which a student gives
to tokens the teacher hardly considers goes unpunished.

Shapes: N positions, V vocabulary, K tokens kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.models.sliced_logits import log_totals

SMALLEST = 1e-7
"""Probability below which the rest of the mass is not resolved in fp32."""
LEAST_LOG = -65_504.0
"""Log-probability of what cannot be, in fp16."""


@dataclass(frozen=True)
class Teacher:
    """The part of the teacher's distributions that is kept."""

    log_probability_NK: Tensor
    """Log-probabilities of the likeliest tokens, in fp16."""
    token_NK: Tensor
    """Which tokens they are, int32."""
    log_rest_N: Tensor
    """Log-probability of all other tokens together, fp32."""

    def rows(self, where: slice | Tensor) -> "Teacher":
        """The same for some of the positions."""
        return Teacher(self.log_probability_NK[where], self.token_NK[where], self.log_rest_N[where])

    def to(self, device: torch.device) -> "Teacher":
        """The same on a device."""
        parts = (self.log_probability_NK, self.token_NK, self.log_rest_N)
        return Teacher(*(part.to(device) for part in parts))

    def without(self, token_N: Tensor) -> "Teacher":
        """The same had it ruled out one token of each position; a negative token rules out none.

        What remains is scaled to one.  A token that is not told apart stays where it is.
        """
        out_NK = self.token_NK == token_N[:, None]
        log_NK = self.log_probability_NK.float().masked_fill(out_NK, LEAST_LOG)
        left_N = torch.cat([log_NK, self.log_rest_N[:, None]], 1).logsumexp(1)
        left_N = left_N.where(out_NK.any(1), 0)
        log_NK = (log_NK - left_N[:, None]).masked_fill(out_NK, LEAST_LOG)
        return Teacher(log_NK.half(), self.token_NK, self.log_rest_N - left_N)

    @staticmethod
    def bytes_per_position(top_k: int) -> int:
        """Bytes that one position takes in the cache."""
        return top_k * (2 + 4) + 4


def remember(logits_NV: Tensor, top_k: int) -> Teacher:
    """The k likeliest tokens of each position."""
    logits_NV = logits_NV.float()
    values_NK, token_NK = logits_NV.topk(min(top_k, logits_NV.shape[1]), dim=1)
    log_NK = values_NK - log_totals(logits_NV)[0][:, None]
    log_rest_N = (1 - log_NK.exp().sum(1)).clamp_min(SMALLEST).log()
    return Teacher(log_NK.half(), token_NK.int(), log_rest_N)


def divergence(teacher: Teacher, logits_NV: Tensor, *, renormalize: bool = False) -> Tensor:
    """KL divergence of the student from the teacher at each position in nats, (N,)."""
    student_NK = logits_NV.gather(1, teacher.token_NK.long()).float()
    teacher_NK = teacher.log_probability_NK.float()
    if renormalize:
        student_NK = student_NK.log_softmax(1)
        teacher_NK = teacher_NK.log_softmax(1)
        return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(1)
    student_NK = student_NK - log_totals(logits_NV)[0][:, None]
    shared_N = (teacher_NK.exp() * (teacher_NK - student_NK)).sum(1)
    if teacher.token_NK.shape[1] == logits_NV.shape[1]:
        return shared_N
    student_log_rest_N = (1 - student_NK.exp().sum(1)).clamp_min(SMALLEST).log()
    return shared_N + teacher.log_rest_N.exp() * (teacher.log_rest_N - student_log_rest_N)


def relative_error(teacher_BLD: Tensor, student_BLD: Tensor) -> Tensor:
    """Squared distance of hidden states over the teacher's squared length, a scalar."""
    difference_BLD = student_BLD.float() - teacher_BLD.float()
    return difference_BLD.square().sum() / teacher_BLD.float().square().sum()


def concatenate(parts: list[Teacher]) -> Teacher:
    """Positions of several teachers, one after the other."""
    return Teacher(
        torch.cat([part.log_probability_NK for part in parts]),
        torch.cat([part.token_NK for part in parts]),
        torch.cat([part.log_rest_N for part in parts]),
    )


def split(teacher: Teacher, num_parts: int) -> list[Teacher]:
    """A teacher's positions in equal parts."""
    size = len(teacher.log_rest_N) // num_parts
    return [teacher.rows(slice(i * size, (i + 1) * size)) for i in range(num_parts)]
