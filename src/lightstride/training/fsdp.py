"""Weights that FSDP shares out among processes: gathered, cut, and put together at the end.

PyTorch's second version of FSDP (`torch.distributed.fsdp.fully_shard`) turns each weight into a
DTensor of which every process holds a part; a forward of the module gathers them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_shared_out(module: nn.Module) -> bool:
    """Whether processes hold parts of the weights."""
    return isinstance(module, FSDPModule)


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Every process has the whole weights for a while, outside a forward of the module."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def touched(module: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for all that learns: all processes then exchange the same."""
    return torch.stack(
        [0 * p.flatten()[0].float() for p in module.parameters() if p.requires_grad]
    ).sum()


def drop_untouched(module: nn.Module) -> None:
    """Weights that no process has touched since the last step have no gradient, instead of zero."""
    learned = [parameter for parameter in module.parameters() if parameter.grad is not None]
    if not learned:
        return
    is_touched = torch.stack([local(parameter.grad).count_nonzero() > 0 for parameter in learned])
    counts = is_touched.int()
    torch.distributed.all_reduce(counts)
    for parameter, count in zip(learned, counts.tolist(), strict=True):
        if not count:
            parameter.grad = None


def local(tensor: Tensor | None) -> Tensor:
    """This process's part of a tensor."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, put together where processes hold parts."""
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()
    return found.cpu().contiguous().clone()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A value where its parameter is: on its device, and as this process's part of it."""
    placed = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
    return placed


@torch.no_grad()
def put_together(module: nn.Module) -> None:
    """Give every process the whole weights for good."""
    found: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:
                    value = parameter.full_tensor()
                    found[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
                setattr(part, name, found[id(parameter)])
