"""Adam whose weights compute in bf16 and learn in fp32.

A bf16 weight has too few digits for a small step, so an fp32 master of it learns and the weight is
the master rounded.  No fp32 copy of a gradient is made: weights, gradients and moments pass
through a core's cache once, a piece at a time.  Where the weight is fp32 it is its own master.

    m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2      w = w - lr m / c1 / (sqrt(v / c2) + eps)

with c = 1 - b^t: torch's own AdamW without decay, which is the plain twin.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightstride.training.fsdp import local

PIECE = 1 << 16
"""Weights of a piece on a CPU: its six numbers each fit a core's cache."""
STATE_BYTES = 12
"""Bytes of a bf16 weight's master and moments."""


class MasterAdam(torch.optim.Optimizer):
    """Adam over weights of any type; moments and masters are fp32."""

    def __init__(
        self,
        groups: Iterable[dict[str, object]],
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": 1e-4, "betas": betas, "eps": eps, "scale": 1.0})

    @staticmethod
    def fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state of a weight that has not moved yet."""
        zeros = torch.zeros_like(
            parameter, dtype=torch.float32, memory_format=torch.contiguous_format
        )
        state = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        return state | master_of(parameter)

    @staticmethod
    def bytes_of(weight: Tensor) -> int:
        """Bytes of such a state."""
        return weight.numel() * (8 if weight.dtype == torch.float32 else STATE_BYTES)

    @staticmethod
    def move(parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One step of one weight, a piece after the other."""
        (b1, b2), eps, rate, scale = group["betas"], group["eps"], group["lr"], group["scale"]
        step = float(state["step"])
        rate, root = rate / (1 - b1**step), math.sqrt(1 - b2**step)
        weight = local(parameter.detach())
        assert weight.is_contiguous()
        master = local(state.get("master", weight))
        means = (local(state[name]) for name in ("exp_avg", "exp_avg_sq"))
        size = PIECE if parameter.device.type == "cpu" else max(1, parameter.numel())
        tensors = (weight, master, local(parameter.grad), *means)
        flat = (tensor.reshape(-1).split(size) for tensor in tensors)
        for weight_P, master_P, gradient_P, mean_P, square_P in zip(*flat, strict=True):
            scaled_P = gradient_P.float() * scale
            mean_P.lerp_(scaled_P, 1 - b1)
            square_P.mul_(b2).addcmul_(scaled_P, scaled_P, value=1 - b2)
            torch.sqrt(square_P, out=scaled_P).div_(root).add_(eps)
            master_P.addcdiv_(mean_P, scaled_P, value=-rate)
            if master is not weight:
                weight_P.copy_(master_P)

    @torch.no_grad()
    def clip(self, largest: float) -> float:
        """The norm of the whole gradient; the next step takes it as if it were at most this."""
        gradients = [
            parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        shared = [each.to_local() for each in gradients if isinstance(each, DTensor)]
        own = norm_of([each for each in gradients if not isinstance(each, DTensor)])
        if shared:
            own = torch.stack([own, summed(norm_of(shared).square()).sqrt()]).norm()
        norm = float(own)
        for group in self.param_groups:
            group["scale"] = min(1.0, largest / (norm + 1e-6)) if math.isfinite(norm) else 0.0
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.fresh(parameter))
                    state["step"] += 1
                    self.move(parameter, state, group)


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The norm of all of them in one, in fp32."""
    parts = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return torch.stack(parts).norm() if parts else torch.zeros(())


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    torch.distributed.all_reduce(tensor)
    return tensor


def master_of(parameter: nn.Parameter) -> dict[str, Tensor]:
    """The fp32 master, where a weight is not its own."""
    if parameter.dtype == torch.float32:
        return {}
    return {"master": parameter.detach().float().contiguous()}
