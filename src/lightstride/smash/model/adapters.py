"""Low-rank adapters on the base model that act only where something was merged.

For a linear layer y = W x they add (alpha / r) B A x at merged positions and nothing elsewhere,
so a sequence in which nothing is merged goes through the untouched base, bit for bit.
LoRA: arXiv 2106.09685; the gate: arXiv 2507.11851.  They hook the base's layers from outside:
the base's module tree, names and weights stay as they are.

Shapes: B rows, Q columns, N of their places where something is merged, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

merged_places: ContextVar[Tensor | None] = ContextVar("merged_places", default=None)
"""Where something is merged, as indices into the flattened positions."""


class GatedAdapters(nn.Module):
    """One adapter for every linear layer of the given blocks; B starts at zero."""

    def __init__(self, blocks: Sequence[nn.Module], *, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for index, block in enumerate(blocks):
            for name, linear in block.named_modules():
                if isinstance(linear, nn.Linear):
                    self.attach(f"{index}.{name}".replace(".", "-"), linear, rank)

    def attach(self, key: str, linear: nn.Linear, rank: int) -> None:
        """Give one layer its adapter."""
        down_RI = torch.empty(rank, linear.in_features)
        nn.init.kaiming_uniform_(down_RI, a=math.sqrt(5))
        self.down[key] = nn.Parameter(down_RI)
        self.up[key] = nn.Parameter(torch.zeros(linear.out_features, rank))

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BQO: Tensor) -> Tensor:
            places_N = merged_places.get()
            if places_N is None:
                return output_BQO
            inputs_NI = inputs[0].flatten(0, -2)[places_N]
            change_NO = nn.functional.linear(
                nn.functional.linear(inputs_NI, self.down[key]), self.up[key]
            )
            changed = output_BQO.flatten(0, -2).index_add(0, places_N, self.scale * change_NO)
            return changed.view_as(output_BQO)

        linear.register_forward_hook(add)


@contextmanager
def merged_at(merged_BQ: Tensor | None) -> Iterator[None]:
    """Inside this context adapters act at the positions marked; None: nowhere."""
    places_N = None if merged_BQ is None else merged_BQ.flatten().nonzero()[:, 0]
    token = merged_places.set(places_N if places_N is not None and len(places_N) else None)
    try:
        yield
    finally:
        merged_places.reset(token)
