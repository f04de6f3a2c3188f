"""From outputs of a head to logits, as the family's own forward does: some scale, some cap.

For code that calls the head itself, a slice of positions at a time.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def head_logits(config: PreTrainedConfig, outputs: Tensor) -> Tensor:
    """Logits, of any shape, of outputs of the head: scaled (Granite), capped (Gemma), or alike."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        outputs = outputs / scaling
    limit = getattr(config, "final_logit_softcapping", None)
    return outputs if limit is None else torch.tanh(outputs / limit) * limit
