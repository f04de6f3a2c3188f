"""The teacher says what the model's own forward says, in every family."""

from pathlib import Path

import pytest
import torch

from helpers.cuts import VARIANTS
from lightstride.models.families.registry import adapter_for
from lightstride.recover.said import SaidRows
from lightstride.recover.teacher import Dense
from lightstride.training.top_k_kl import remember

TOKENS_L = torch.arange(3, 15)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_it_says_the_models_own_likeliest_tokens(name: str, tmp_path: Path) -> None:
    model = VARIANTS[name]()
    teacher = Dense(model, adapter_for(model.config), top_k=4, kept=SaidRows(tmp_path, 1 << 20))
    said = teacher.say([0], TOKENS_L[None])[0]
    expected = remember(model(TOKENS_L[None]).logits[0], 4)
    torch.testing.assert_close(said.log_probability_NK, expected.log_probability_NK)
    assert torch.equal(said.token_NK, expected.token_NK)
    again = teacher.say([0], TOKENS_L[None])[0]
    assert torch.equal(again.log_probability_NK, said.log_probability_NK)
