"""The plain twin of the top-k divergence."""

from torch import Tensor


def plain_divergence(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """KL divergence over the whole vocabulary in nats, (N,)."""
    teacher_NV = teacher_NV.double().log_softmax(1)
    student_NV = student_NV.double().log_softmax(1)
    return (teacher_NV.exp() * (teacher_NV - student_NV)).sum(1)
