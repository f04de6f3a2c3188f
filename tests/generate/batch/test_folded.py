"""Attention that reads each KV head once, against torch's own over repeated heads."""

import pytest
import torch
from torch import nn

from helpers.agree import assert_close_logits
from helpers.toys import tiny_llama, tiny_qwen3
from lightstride.generate.batch.folded import NAME, attention, can_fold, folded_heads

SHAPES = [(1, 1, 9), (3, 1, 9), (2, 5, 12), (1, 40, 50), (2, 6, 6)]
"""Rows, new columns, columns in all."""


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "new", "width"), SHAPES)
def test_folded_is_torchs_own(rows: int, new: int, width: int, masked: bool) -> None:
    torch.manual_seed(rows + new)
    query = torch.randn(rows, 6, new, 8)
    key, value = torch.randn(rows, 2, width, 8), torch.randn(rows, 2, width, 8)
    sees = torch.ones(new, width).tril(width - new).bool().expand(rows, 1, new, width)
    if masked:
        sees = sees & (torch.rand(rows, 1, new, width) > 0.3)
        sees[..., 0] = True
    with folded_heads(tiny_llama()):
        found, _ = attention(nn.Module(), query, key, value, sees if masked else None)
    expected = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=sees
    )
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3])
def test_a_model_says_the_same_and_is_left_as_it_was(make) -> None:
    model = make()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    with torch.inference_mode():
        expected = model(tokens).logits
        with folded_heads(model):
            assert model.config._attn_implementation == NAME
            found = model(tokens).logits
    assert_close_logits(found, expected)
    assert model.config._attn_implementation == "sdpa"


def test_other_attention_stays() -> None:
    model = tiny_llama()
    model.set_attn_implementation("eager")
    with folded_heads(model):
        assert model.config._attn_implementation == "eager"
    assert not can_fold(model)
