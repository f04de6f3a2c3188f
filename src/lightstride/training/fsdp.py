"""Weights that FSDP shares out among processes: gathered, cut, and put together at the end.

PyTorch's second version of FSDP (`torch.distributed.fsdp.fully_shard`) turns each weight into a
DTensor of which every process holds a part; a forward of the module gathers them.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightstride.distributed import world_size
from lightstride.errors import ConfigError

SECOND_VERSION = "weights are shared out by FSDP's second version: add --fsdp_version 2"


def is_asked_for() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process and others."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(SECOND_VERSION)
    return asked and world_size() > 1


def share_out(
    model: nn.Module, decoder: nn.Module, blocks: Iterable[nn.Module], device: torch.device
) -> None:
    """Let every process hold a part of the blocks' weights, and all of the others, on a device.

    A block is whole while it computes.  Gradients are summed over the processes.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        shared = fully_shard(block, mesh=mesh, reshard_after_forward=True)
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)
    model.to(device)
    whole_here = {p for p in decoder.parameters() if not isinstance(p, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole_here)


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
    """The same on the CPU, put together where processes hold parts; no copy of what lies there."""
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()
    found = found.cpu().contiguous()
    is_own = found.untyped_storage().nbytes() == found.nbytes
    return found if is_own else found.clone()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A value where its parameter is: on its device, and as this process's part of it."""
    placed = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
    return placed


@torch.no_grad()
def put_together(module: nn.Module, device: str | None = None) -> None:
    """Give every process the whole weights for good, on a device if that is given."""
    found: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.__class__ = type(part).__bases__[1]  # whose `to` moves ordinary weights
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:
                    value = parameter.full_tensor().to(device)
                    found[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
                setattr(part, name, found[id(parameter)])
