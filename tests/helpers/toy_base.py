"""What all toys are made with: seeds, weights, special tokens."""

from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)

BOS, EOS, PAD, UNK = 256, 257, 258, 259
VOCAB_SIZE = 260


def build(model_class: type[M], config: PreTrainedConfig, seed: int) -> M:
    """A seeded model of this class, in evaluation mode."""
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.train(False)
    return model
