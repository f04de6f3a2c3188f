"""A narrowed model of every family."""

import pytest
from transformers import PreTrainedModel

from helpers.cuts import VARIANTS, cut_block


@pytest.fixture(params=VARIANTS)
def uneven(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A toy of transformers' own class, whose second block is narrower."""
    model = VARIANTS[request.param]()
    cut_block(model, 1)
    return model
