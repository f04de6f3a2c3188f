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


def test_a_token_ruled_out_is_one_that_cannot_be() -> None:
    generator = torch.Generator().manual_seed(2)
    teacher_NV, student_NV = torch.randn(2, 6, 20, generator=generator)
    token_N = teacher_NV.argmax(1)
    token_N[0] = -1
    plain_NV = teacher_NV.clone()
    plain_NV[torch.arange(1, 6), token_N[1:]] = -40.0
    found_N = divergence(remember(teacher_NV, 20).without(token_N), student_NV)
    torch.testing.assert_close(
        found_N.double(), plain_divergence(plain_NV, student_NV), rtol=2e-3, atol=2e-3
    )


def test_what_is_not_told_apart_is_not_ruled_out() -> None:
    teacher = remember(torch.arange(20.0).repeat(2, 1), 5)
    found = teacher.without(torch.tensor([3, 18]))
    assert torch.equal(found.log_probability_NK[0], teacher.log_probability_NK[0])
    whole_N = found.log_probability_NK.float().exp().sum(1) + found.log_rest_N.exp()
    torch.testing.assert_close(whole_N, torch.ones(2), rtol=1e-3, atol=1e-3)
    assert found.log_probability_NK[1].exp().tolist()[1] == 0
