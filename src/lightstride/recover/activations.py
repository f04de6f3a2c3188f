"""Activations that a backward needs: how many bytes they are, and blocks that compute theirs again.

A checkpointed block keeps its input alone: the backward runs its forward once more, by the same
attention.  transformers' own checkpointing wants blocks in training mode, in which some drop
activations out.

Shapes: B rows, L tokens, D hidden size.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from lightstride.recover.attention import plain_products


def checkpoint_blocks(blocks: Iterable[nn.Module], config: PreTrainedConfig) -> None:
    """Let every block compute its activations again in the backward."""
    for block in blocks:
        vars(block)["forward"] = partial(again_in_backward, block.forward, config)


def release_blocks(blocks: Iterable[nn.Module]) -> None:
    """Undo it."""
    for block in blocks:
        vars(block).pop("forward", None)


def again_in_backward(
    forward: Callable[..., object],
    config: PreTrainedConfig,
    hidden_BLD: Tensor,
    *arguments: object,
    **named: object,
) -> object:
    """What a block's forward gives."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        length = hidden_BLD.shape[1]
        return nullcontext(), plain_products(config, hidden_BLD.device, length)

    return checkpoint(
        partial(forward, **named), hidden_BLD, *arguments, use_reentrant=False, context_fn=contexts
    )


def activation_bytes(
    forward: Callable[[], object], decoder: nn.Module, blocks: Iterable[nn.Module]
) -> tuple[list[int], list[int]]:
    """Bytes of each block's input, and of all that it keeps for its backward.

    They are counted in a forward that holds on to one block's at a time.
    """
    lasting = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*decoder.parameters(), *decoder.buffers())
    }
    kept: dict[int, Tensor] = {}
    inputs: list[int] = []
    whole: list[int] = []

    def note(tensor: Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        if place not in lasting:
            kept[place] = tensor

    def begin(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].nbytes)
        kept.clear()

    def end(*_: object) -> None:
        whole.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
        kept.clear()

    hooks = [
        hook
        for block in blocks
        for hook in (block.register_forward_pre_hook(begin), block.register_forward_hook(end))
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda _: torch.empty(0)):
            forward()
    finally:
        kept.clear()  # whose graph has `note`, and so would never end
        for hook in hooks:
            hook.remove()
    return inputs, whole
