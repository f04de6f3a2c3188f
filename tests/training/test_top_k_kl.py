"""Divergence of the likeliest tokens and the rest."""

import itertools

import pytest
import torch

from helpers.divergence import plain_divergence
from lightstride.models.sliced_logits import log_totals
from lightstride.training.top_k_kl import divergence, remember


def test_divergence_of_the_top_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher_NV, student_NV = 3 * torch.randn(2, 40, 100, generator=generator)
    whole_N = plain_divergence(teacher_NV, student_NV)
    values = [divergence(remember(teacher_NV, k), student_NV) for k in (1, 10, 50, 99, 100)]
    for fewer_N, more_N in itertools.pairwise(values):
        assert (fewer_N <= more_N + 2e-3).all()
    torch.testing.assert_close(values[-1].double(), whole_N, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(values[-2].double(), whole_N, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_totals_in_pieces_are_logsumexp(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightstride.models.sliced_logits.CACHED_BYTES", 1000)
    logits_NV = (20 * torch.randn(7, 100)).to(dtype)
    before_NV = logits_NV.clone()
    totals_N, tops_N = log_totals(logits_NV)
    torch.testing.assert_close(totals_N, logits_NV.float().logsumexp(1))
    assert torch.equal(tops_N, logits_NV.float().amax(1))
    assert torch.equal(logits_NV, before_NV)


def test_renormalizing_forgets_the_rest() -> None:
    teacher_NV = torch.tensor([[3.0, 2.0, -9.0, -9.0]])
    student_NV = torch.tensor([[3.0, 2.0, 9.0, 9.0]])
    teacher = remember(teacher_NV, 2)
    assert float(divergence(teacher, student_NV, renormalize=True)) == pytest.approx(0, abs=1e-3)
    assert float(divergence(teacher, student_NV)) > 5
