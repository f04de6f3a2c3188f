"""The identity of a model: a hash over shapes and samples of all its weights, and over its config.

Values are rounded to bfloat16 first, so the same weights opened in float32 or bfloat16 are the
same base.  Up to 64 evenly spaced values a tensor keep it fast for large models; any training,
pruning or exchange of weights changes it.
"""

import hashlib
import json

import torch
from torch import nn
from transformers import PreTrainedModel

SAMPLES = 64
NO_MATHEMATICS = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures")
"""Entries of a config that may differ between two copies of one model."""


def fingerprint(model: nn.Module) -> str:
    """A short hexadecimal name of these weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat_N = parameter.detach().flatten()
        count = min(SAMPLES, flat_N.numel())
        picked = torch.linspace(0, flat_N.numel() - 1, count, dtype=torch.float64)
        values = flat_N[picked.long().to(flat_N.device)].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_hash(model: PreTrainedModel) -> str:
    """Hash of a model's config and weights: of all that it computes with, whatever its type."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in NO_MATHEMATICS}
    described = json.dumps([config, fingerprint(model)], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()
