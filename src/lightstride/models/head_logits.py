"""From outputs of a head to logits, as the family's own forward does: some scale, some cap.

For code that calls the head itself, a slice of positions at a time.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lightstride.errors import ModelError


def head_logits(config: PreTrainedConfig, outputs: Tensor) -> Tensor:
    """Logits, of any shape, of outputs of the head: scaled (Granite), capped (Gemma), or alike."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        outputs = outputs / scaling
    limit = getattr(config, "final_logit_softcapping", None)
    return outputs if limit is None else torch.tanh(outputs / limit) * limit


def head_inputs(config: PreTrainedConfig, hidden: Tensor) -> Tensor:
    """Hidden states, of any shape, of which a head without bias makes the logits themselves.

    Raises ModelError for a family that caps its logits: no input does that.
    """
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise ModelError(f"{config.model_type} caps its logits, which cannot be learned from here")
    scaling = getattr(config, "logits_scaling", None)
    return hidden if scaling is None else hidden / scaling
