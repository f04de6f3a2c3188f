"""Names of weights."""

import torch

from helpers.toys import tiny_llama
from lightstride.models.fingerprint import fingerprint


def test_a_fingerprint_knows_weights_and_not_their_type() -> None:
    model = tiny_llama()
    name = fingerprint(model)
    assert name == fingerprint(tiny_llama()) == fingerprint(tiny_llama().bfloat16())
    assert name != fingerprint(tiny_llama(seed=1))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert name != fingerprint(model)
