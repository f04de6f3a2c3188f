"""The fast loss and the plain one: values, gradients, and what is remembered of a teacher."""

import pytest
import torch
from torch import nn

from lightstride.models import sliced_logits
from lightstride.recover import losses
from lightstride.recover.losses import top_k_loss
from lightstride.training import top_k_kl
from lightstride.training.top_k_kl import remember


def inputs(positions: int = 13, vocab: int = 50, hidden: int = 8) -> tuple[nn.Linear, ...]:
    head = nn.Linear(hidden, vocab, bias=False)
    return head, 2 * torch.randn(positions, hidden), 2 * torch.randn(positions, vocab)


@pytest.mark.parametrize("top_k", [1, 7, 50])
@pytest.mark.parametrize("learns", [False, True])
def test_slices_give_the_value_and_the_gradient_of_autograd(
    top_k: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "PRODUCT_ROWS", 4)
    monkeypatch.setattr(sliced_logits, "CACHED_BYTES", 600)
    head, hidden_ND, teacher_NV = inputs()
    head.weight.requires_grad_(learns)
    said, weights_N = remember(teacher_NV, top_k), torch.rand(len(hidden_ND))
    fast_ND, plain_ND = (hidden_ND.clone().requires_grad_() for _ in range(2))
    fast = top_k_loss(head, fast_ND, said, weights_N)
    (3 * fast).backward()
    found, head.weight.grad = head.weight.grad, None
    plain = (top_k_kl.divergence(said, head(plain_ND)) * weights_N).sum()
    (3 * plain).backward()
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(fast_ND.grad, plain_ND.grad, rtol=1e-4, atol=1e-5)
    if learns:
        torch.testing.assert_close(found, head.weight.grad, rtol=1e-4, atol=1e-5)
    else:
        assert found is None


def test_a_student_that_has_forgotten_the_rest_has_a_finite_loss_and_gradient() -> None:
    head = nn.Linear(4, 20, bias=False)
    with torch.no_grad():
        head.weight.zero_()[3] = 100.0
    hidden_ND = torch.ones(2, 4, requires_grad=True)
    said = remember(torch.randn(2, 20), 2)
    loss = top_k_loss(head, hidden_ND, said, torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert hidden_ND.grad.isfinite().all()


def test_in_half_precision_the_gradient_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_logits, "CACHED_BYTES", 600)
    head, hidden_ND, teacher_NV = inputs()
    head.weight.requires_grad_(False)
    said, weights_N = remember(teacher_NV, 7), torch.ones(len(hidden_ND))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        own_ND = hidden_ND.detach().to(dtype).requires_grad_()
        top_k_loss(head.to(dtype), own_ND, said, weights_N).backward()
        found.append(own_ND.grad.float())
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
