"""Models larger than one device: at rest on the CPU, on all accelerators for the search.

Statistics stream the blocks of a model that lies on the CPU through one device
(`stream_blocks(device=...)`).  The search runs whole candidates, so for it the model is spread
over all accelerators by `accelerate`, whole blocks on each.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_submodules
from transformers import PreTrainedModel

from lightstride.errors import ConfigError
from lightstride.models.families.adapter import Adapter

SHARE_FOR_WEIGHTS = 0.6
"""Of a device's memory; the rest is for activations, statistics and cut weights."""


def move_if_it_fits(model: PreTrainedModel, device: str, limit: int | None = None) -> None:
    """Move a model to a device if it is small enough for it, or for a limit; else it stays."""
    if device == "cpu":
        return
    there = device_bytes(device)
    room = there if limit is None else min(there, limit)
    if weight_bytes(model) <= SHARE_FOR_WEIGHTS * room:
        model.to(torch.device(device))  # type: ignore[arg-type]


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights."""
    return sum(parameter.nbytes for parameter in model.parameters())


def device_bytes(device: str) -> int:
    """Memory of a device; without bound where it cannot be asked for."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 1 << 62


@contextmanager
def dispatched(
    model: PreTrainedModel, adapter: Adapter, memory: dict[int | str, int] | None
) -> Iterator[None]:
    """Inside, the model lies on all devices of `memory` (bytes by device); None leaves it."""
    if memory is None:
        yield
        return
    block = type(adapter.blocks(model)[0]).__name__
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=[block])
    if "disk" in places.values():
        have = sum(memory.values()) >> 30
        raise ConfigError(
            f"the search needs all weights on accelerators: {weight_bytes(model) >> 30} GiB, "
            f"{have} GiB are there; add devices, or give --search none"
        )
    dispatch_model(model, places, force_hooks=True)
    try:
        yield
    finally:
        remove_hook_from_submodules(model)
        model.to(torch.device("cpu"))  # type: ignore[arg-type]


def room_for(model: PreTrainedModel, memory: Mapping[int | str, int]) -> bool:
    """Whether all weights fit on these devices together, whole blocks on each."""
    return weight_bytes(model) <= 0.9 * sum(memory.values())


def accelerator_memory(model: PreTrainedModel, device: str) -> dict[int | str, int] | None:
    """Memory that `dispatched` may use; None for a model that is where it computes."""
    if device != "cuda" or model.device.type == device:
        return None
    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return {index: int(SHARE_FOR_WEIGHTS * size) for index, size in enumerate(sizes)}
