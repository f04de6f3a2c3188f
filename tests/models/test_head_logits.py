"""Logits made by the head alone are those of the model's own forward, in every family."""

import pytest
import torch

from helpers.cuts import VARIANTS, logits, tokens
from helpers.toys import tiny_gemma3
from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.head_logits import head_inputs, head_logits

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


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_inputs_of_the_head_make_the_models_own_logits(name: str) -> None:
    model = VARIANTS[name]()
    hidden_BLD = adapter_for(model.config).decoder(model)(tokens()).last_hidden_state
    outputs_BLV = model.get_output_embeddings()(head_inputs(model.config, hidden_BLD))
    torch.testing.assert_close(outputs_BLV, logits(model))


def test_capped_logits_have_no_such_inputs() -> None:
    config = tiny_gemma3().config
    config.final_logit_softcapping = 2.0
    with pytest.raises(ModelError, match="caps its logits"):
        head_inputs(config, torch.zeros(2, 3))
