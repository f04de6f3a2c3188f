"""Micro layers that start as the base's last block."""

import pytest
import torch

from helpers.smash_toys import toy
from helpers.toys import TINY, tiny_llama
from lightstride.smash.model import body
from lightstride.smash.train.initialize import initialize_from_base


@pytest.mark.parametrize("family", TINY)
def test_micro_layers_may_start_as_the_last_block(family: str) -> None:
    model = toy(TINY[family]())
    initialize_from_base(model)
    last = body.adapter_for(model.base.config).blocks(model.base)[-1]
    weights = body.adapter_for(model.base.config).read(last, "ffn")
    for layer in model.micro.layers:
        assert torch.equal(layer.down.weight, weights["down"])
        assert torch.equal(layer.up.weight, weights["up"])


def test_a_micro_layer_that_starts_as_the_last_block_computes_the_same() -> None:
    model = toy(tiny_llama(), num_layers=1)
    initialize_from_base(model)
    inputs = torch.randn(1, 5, 32)
    angles = model.micro.angles_2Sd[:, :5]
    found, _ = model.micro.layers[0](inputs, angles, None, 5)
    cosine, sine = model.base.model.rotary_emb(inputs, torch.arange(5)[None])
    mask = torch.ones(1, 1, 5, 5).bool().tril()
    expected = model.base.model.layers[-1](
        inputs, attention_mask=mask, position_embeddings=(cosine, sine)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.micro.norm(inputs), model.base.model.norm(inputs))
