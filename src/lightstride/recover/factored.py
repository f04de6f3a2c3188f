"""Adam whose second moment is kept as means of rows and columns, and whose first is in bf16.

Of a matrix of O rows and I columns Adafactor (arXiv 1804.04235) remembers the mean square of the
gradient of every row and of every column, and takes their product over the mean of all for the mean
square of each weight.  The rest is Adam with masters (`optimizer.py`): rates, betas and clipping
are the same.  Six bytes a bf16 weight instead of twelve, two instead of eight for an fp32 one.

    R = b2 R + (1 - b2) mean_j g^2      C = b2 C + (1 - b2) mean_i g^2      v_ij = R_i C_j / mean R

A stack of matrices (experts) is one matrix, its members one under the other; vectors are Adam's.
torch's and transformers' Adafactor keep no masters: steps too small for a bf16 weight are lost.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightstride.recover.optimizer import PIECE, MasterAdam, master_of, summed
from lightstride.training.fsdp import local

TINY = torch.finfo(torch.float32).tiny
"""Under a mean of squares, where all gradients are zero."""


class FactoredAdam(MasterAdam):
    """Adam with a factored second moment, over weights of any type; masters are fp32."""

    @staticmethod
    def fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state of a weight that has not moved yet."""
        if parameter.dim() < 2:
            return MasterAdam.fresh(parameter)
        zeros = torch.zeros_like(
            parameter, dtype=torch.bfloat16, memory_format=torch.contiguous_format
        )
        state = {
            "step": torch.zeros(()),
            "exp_avg": zeros,
            "exp_avg_sq_row": torch.zeros_like(parameter.detach()[..., 0], dtype=torch.float32),
            "exp_avg_sq_col": torch.zeros(parameter.shape[-1], device=parameter.device),
        }
        return state | master_of(parameter)

    @staticmethod
    def bytes_of(weight: Tensor) -> int:
        """Bytes of such a state."""
        if weight.dim() < 2:
            return MasterAdam.bytes_of(weight)
        columns = weight.shape[-1]
        means = 4 * (weight.numel() // columns + columns)
        return weight.numel() * (2 if weight.dtype == torch.float32 else 6) + means

    @staticmethod
    def move(parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One step of one weight, some rows after others."""
        if parameter.dim() < 2:
            MasterAdam.move(parameter, state, group)
            return
        (b1, b2), eps, rate, scale = group["betas"], group["eps"], group["lr"], group["scale"]
        step = float(state["step"])
        gradient_OI = local(parameter.grad).flatten(0, -2)
        rows, columns = gradient_OI.shape
        size = max(1, PIECE // columns if parameter.device.type == "cpu" else rows)
        row_O, column_I = local(state["exp_avg_sq_row"]).view(rows), state["exp_avg_sq_col"]
        sum_I = torch.zeros_like(column_I)
        for gradient_PI, row_P in zip(gradient_OI.split(size), row_O.split(size), strict=True):
            square_PI = (gradient_PI.float() * scale).square_()
            row_P.lerp_(square_PI.mean(1), 1 - b2)
            sum_I += square_PI.sum(0)
        total = row_O.sum()
        if isinstance(parameter, DTensor):
            sum_I, total = summed(sum_I), summed(total)
        all_rows = parameter.numel() // columns
        column_I.lerp_(sum_I / all_rows, 1 - b2)
        root_O1 = (row_O / (total / all_rows).clamp_min(TINY)).sqrt_()[:, None]
        root_I = (column_I / (1 - b2**step)).sqrt_()
        weight_OI = local(parameter.detach()).view(rows, columns)
        master_OI = local(state.get("master", weight_OI)).view(rows, columns)
        mean_OI = local(state["exp_avg"]).view(rows, columns)
        tensors = (weight_OI, master_OI, mean_OI, gradient_OI, root_O1)
        for weight_PI, master_PI, mean_PI, gradient_PI, root_P1 in zip(
            *(tensor.split(size) for tensor in tensors), strict=True
        ):
            new_PI = mean_PI.float().lerp_(gradient_PI.float() * scale, 1 - b1)
            mean_PI.copy_(new_PI)
            spread_PI = (root_P1 * root_I).add_(eps)
            master_PI.addcdiv_(new_PI, spread_PI, value=-rate / (1 - b1**step))
            if weight_PI.dtype != master_PI.dtype:
                weight_PI.copy_(master_PI)
