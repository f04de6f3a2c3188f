"""Packed copies of weights: the same products, known to be stale, gone after the forward."""

import pytest
import torch
from torch import nn

from helpers.toys import tiny_llama
from lightstride.generate.batch import packed
from lightstride.generate.batch.packed import copies_of, packed_layers

needs_kernel = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no kernel that packing pays for",
)
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])


@needs_kernel
def test_packed_layers_say_the_same() -> None:
    model = tiny_llama().bfloat16()
    with torch.inference_mode():
        expected = model(TOKENS).logits.float()
        with packed_layers(model):
            found = model(TOKENS).logits.float()
    assert copies_of(model)
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
    assert all("forward" not in layer.__dict__ for layer in model.modules())


@needs_kernel
@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4, 3)])
def test_a_layer_with_a_bias_takes_any_shape(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24)).bfloat16()
    inputs = torch.randn(*shape[:-1], 16, shape[-1]).transpose(-1, -2).bfloat16()
    with torch.inference_mode():
        expected = model(inputs)
        with packed_layers(model):
            found = model(inputs)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


@needs_kernel
def test_a_weight_that_changes_is_packed_again() -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False)).bfloat16()
    inputs = torch.randn(2, 16).bfloat16()
    with torch.inference_mode(), packed_layers(model):
        model(inputs)
    with torch.no_grad():
        model[0].weight.mul_(-1)
    with torch.inference_mode():
        expected = model(inputs)
        with packed_layers(model):
            torch.testing.assert_close(model(inputs), expected, atol=0.02, rtol=0.02)
    model[0].weight.data = torch.randn(16, 16).bfloat16()
    with torch.inference_mode():
        expected = model(inputs)
        with packed_layers(model):
            torch.testing.assert_close(model(inputs), expected, atol=0.02, rtol=0.02)


def attention_like() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    for name, width in (("q_proj", 24), ("k_proj", 8), ("v_proj", 16)):
        model.add_module(name, nn.Linear(32, width, bias=False))
    return model.bfloat16()


@needs_kernel
@pytest.mark.parametrize("order", ["qkv", "vqk", "q", "qqkkvv", "qkvqkv"])
def test_layers_of_the_same_columns_are_one_product_in_any_order(order: str) -> None:
    model = attention_like()
    with torch.inference_mode():
        for columns in torch.randn(2, 3, 5, 32).bfloat16():
            expected = {name: model.get_submodule(f"{name}_proj")(columns) for name in "qkv"}
            with packed_layers(model):
                assert (
                    len({packed.forward.func.__self__ for packed in copies_of(model).values()}) == 1
                )
                for name in order:
                    found = model.get_submodule(f"{name}_proj")(columns)
                    torch.testing.assert_close(found, expected[name], atol=0.02, rtol=0.02)


@needs_kernel
def test_a_product_of_several_is_made_again_when_one_changes() -> None:
    model = attention_like()
    columns = torch.randn(3, 32).bfloat16()
    with torch.inference_mode(), packed_layers(model):
        model.q_proj(columns)
    with torch.no_grad():
        model.v_proj.weight.mul_(-1)
    with torch.inference_mode():
        expected = model.v_proj(columns)
        with packed_layers(model):
            torch.testing.assert_close(model.v_proj(columns), expected, atol=0.02, rtol=0.02)


def test_nothing_is_packed_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copies_of(tiny_llama()) == {}
    model = tiny_llama().bfloat16()
    monkeypatch.setattr(packed, "MOST_OF_FREE_MEMORY", 0.0)
    assert copies_of(model) == {}
