"""Logits made by the head alone are those of the model's own forward, in every family."""

import pytest
import torch

from helpers.cuts import VARIANTS, logits, tokens
from helpers.toys import tiny_gemma3
from lightstride.models.families.registry import adapter_for
from lightstride.models.head_logits import head_logits

MODELS = {**VARIANTS, "capped": tiny_gemma3}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_the_models_own(name: str) -> None:
    model = MODELS[name]()
    if name == "capped":
        model.config.final_logit_softcapping = 2.0
    hidden_BLD = adapter_for(model.config).decoder(model)(tokens()).last_hidden_state
    outputs_BLV = model.get_output_embeddings()(hidden_BLD)
    torch.testing.assert_close(head_logits(model.config, outputs_BLV), logits(model))
    if name == "capped":
        assert logits(model).abs().max() < 2
