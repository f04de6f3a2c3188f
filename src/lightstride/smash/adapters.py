"""Low-rank adapters on the base model that act only where something was merged.

For a linear layer y = W x they add (alpha / r) B A x at merged positions and nothing elsewhere,
so a sequence in which nothing is merged goes through the untouched base, bit for bit.
LoRA: arXiv 2106.09685; the gate: arXiv 2507.11851.  They hook the base's layers from outside:
the base's module tree, names and weights stay as they are.

Shapes: B rows, Q columns, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

merged_positions: ContextVar[Tensor | None] = ContextVar("merged_positions", default=None)


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
            merged_BQ = merged_positions.get()
            if merged_BQ is None:
                return output_BQO
            change_BQO = nn.functional.linear(
                nn.functional.linear(inputs[0], self.down[key]), self.up[key]
            )
            changed_BQO = output_BQO + self.scale * change_BQO
            where_BQ1 = merged_BQ.reshape(*output_BQO.shape[:-1], 1)
            return torch.where(where_BQ1, changed_BQO, output_BQO)

        linear.register_forward_hook(add)


@contextmanager
def merged_at(merged_BQ: Tensor | None) -> Iterator[None]:
    """Inside this context adapters act at the positions marked; None: nowhere."""
    token = merged_positions.set(merged_BQ)
    try:
        yield
    finally:
        merged_positions.reset(token)
