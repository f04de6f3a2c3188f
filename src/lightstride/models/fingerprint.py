"""What identifies a base model: a hash over shapes and samples of all its weights.

Values are rounded to bfloat16 first, so the same weights opened in float32 or bfloat16 are the
same base.  Up to 64 evenly spaced values a tensor keep it fast for large models; any training,
pruning or exchange of weights changes it.
"""

import hashlib

import torch
from torch import nn

SAMPLES = 64


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
