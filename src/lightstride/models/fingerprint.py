"""The identity of a model: a hash over shapes and samples of all its weights, and over its config.

Values are rounded to bfloat16 first, so the same weights opened in float32 or bfloat16 are the
same base.  Up to 64 evenly spaced values a tensor keep it fast for large models; any training,
pruning or exchange of weights changes it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

SAMPLES = 64
NO_MATHEMATICS = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures")
"""Entries of a config that may differ between two copies of one model."""
Sampler = Callable[[str, Tensor], Tensor]
"""The values of the tensor of a name at some places, counted as if it were flat."""


def fingerprint(model: nn.Module) -> str:
    """A short hexadecimal name of these weights."""
    flat = {name: parameter.detach().flatten() for name, parameter in model.named_parameters()}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return sampled_fingerprint(
        shapes, lambda name, picked_N: flat[name][picked_N.to(flat[name].device)]
    )


def sampled_fingerprint(shapes: Mapping[str, torch.Size], sample: Sampler) -> str:
    """The fingerprint of tensors of these shapes, of which only samples are asked for."""
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        count = min(SAMPLES, shape.numel())
        picked_N = torch.linspace(0, shape.numel() - 1, count, dtype=torch.float64).long()
        values_N = sample(name, picked_N).to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(shape)}".encode())
        digest.update(values_N.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_hash(model: PreTrainedModel) -> str:
    """Hash of a model's config and weights: of all that it computes with, whatever its type."""
    return config_hash(model.config, fingerprint(model))


def config_hash(config: PreTrainedConfig, weights: str) -> str:
    """Hash of a config together with the fingerprint of its weights."""
    fields = {k: v for k, v in config.to_dict().items() if k not in NO_MATHEMATICS}
    described = json.dumps([fields, weights], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()
