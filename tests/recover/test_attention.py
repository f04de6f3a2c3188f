"""Attention for learning against torch's own: outputs, gradients, and where it is not taken."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, MistralConfig

from helpers.toys import tiny_llama
from lightstride.recover import attention
from lightstride.recover.attention import NAME, causal, plain_products


@pytest.mark.parametrize("piece", [3, 4, 11, 64])
@pytest.mark.parametrize(("heads", "groups"), [(6, 3), (2, 2), (4, 1)])
def test_it_is_torchs_attention(
    piece: int, heads: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PIECE", piece)
    inputs = [torch.randn(2, 11, h, 8).transpose(1, 2) for h in (heads, groups, groups)]
    outer = torch.randn(2, heads, 11, 8)
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    found = causal(*ours, 0.3)  # type: ignore[call-arg]
    expected = scaled_dot_product_attention(*theirs, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    found.backward(outer)
    expected.backward(outer)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_model_answers_alike_and_is_left_as_it_was() -> None:
    model = tiny_llama()
    tokens = torch.randint(0, model.config.vocab_size, (2, 13))
    before = model.config._attn_implementation
    expected = model(tokens).logits
    with plain_products(model.config, torch.device("cpu"), 13):
        assert model.config._attn_implementation == NAME
        torch.testing.assert_close(model(tokens).logits, expected)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("config", "device", "length"),
    [
        (LlamaConfig(), "cuda", 16),
        (MistralConfig(sliding_window=15), "cpu", 16),
        (LlamaConfig(attn_implementation="eager"), "cpu", 16),
    ],
)
def test_it_is_not_taken_where_it_is_slower_or_another(
    config: LlamaConfig, device: str, length: int
) -> None:
    config._attn_implementation = config._attn_implementation or "sdpa"
    before = config._attn_implementation
    with plain_products(config, torch.device(device), length):
        assert config._attn_implementation == before
