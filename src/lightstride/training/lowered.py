"""Weights that learn in fp32 and compute in less: a module called with lowered copies of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def call_lowered(
    module: nn.Module,
    dtype: torch.dtype,
    *args: object,
    others: Mapping[str, Tensor] | None = None,
    **kwargs: object,
) -> object:
    """The module's answer, computed with copies of this type of all weights that learn.

    The gradient reaches the weights themselves.  `others` replace further tensors by name.
    """
    lowered = {
        name: parameter.to(dtype)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.dtype != dtype
    }
    return functional_call(module, {**lowered, **(others or {})}, args, kwargs)
