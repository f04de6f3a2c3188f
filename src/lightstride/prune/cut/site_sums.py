"""Sums over tokens at one site: Gram matrices, drifts, and how many tokens each expert saw.

A site without experts has one Gram matrix of all its inputs.  The experts of an FFN have one each,
over the tokens that were sent to it, as inputs of different experts share few tokens: what one
expert loses is not made up for by another.  A drift is undone by all experts of a token together,
so each is asked for 1/K of it.

Shapes: I inputs of output weights, of E experts W each, K experts that a token is sent to,
T tokens, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.distributed import TreeSum
from lightstride.prune.cut.gram import add_cross, add_gram, packed_size, unpacked


@dataclass(frozen=True)
class SiteInputs:
    """How the inputs of a site's output weights are shared out among experts."""

    num_inputs: int
    num_experts: int = 0
    """0 without experts; else all are equally wide."""
    experts_per_token: int = 1

    @property
    def width(self) -> int:
        """Inputs of a Gram matrix."""
        return self.num_inputs // max(self.num_experts, 1)


@dataclass(frozen=True)
class SiteSums:
    """The sums of a site over all tokens."""

    gram: Tensor
    """H (I, I), or one for every expert (E, W, W)."""
    drift_IO: Tensor | None
    tokens_E: Tensor | None
    """Tokens that each expert was sent; None without experts."""


class ShardSums:
    """The sums of one shard, in the making."""

    def __init__(self, inputs: SiteInputs, num_outputs: int, device: torch.device) -> None:
        self.inputs = inputs
        grams = (inputs.num_experts,) if inputs.num_experts else ()
        self.gram = torch.zeros(*grams, packed_size(inputs.width), device=device)
        self.drift_IO = torch.zeros(inputs.num_inputs, num_outputs, device=device)
        self.tokens_E = torch.zeros(inputs.num_experts, device=device)

    def add(self, rows_TI: Tensor, errors_TO: Tensor) -> None:
        """Add these tokens; their errors have no columns where no drift is asked for."""
        if not self.inputs.num_experts:
            add_gram(self.gram, rows_TI)
            if self.drift_IO.numel():
                add_cross(self.drift_IO, rows_TI, errors_TO)
            return
        width = self.inputs.width
        for number, packed_P in enumerate(self.gram):
            own = slice(number * width, (number + 1) * width)
            sent_T = rows_TI[:, own].any(1)
            given_TW = rows_TI[sent_T, own]
            self.tokens_E[number] += len(given_TW)
            add_gram(packed_P, given_TW)
            if self.drift_IO.numel():
                share_TO = errors_TO[sent_T] / self.inputs.experts_per_token
                add_cross(self.drift_IO[own], given_TW, share_TO)


class AllSums:
    """The sums of all shards, on all ranks."""

    def __init__(self, num_shards: int, inputs: SiteInputs) -> None:
        self.num_shards, self.inputs = num_shards, inputs
        self.sums: dict[str, TreeSum] = {}

    def add(self, shard: int, sums: ShardSums) -> None:
        """Add a shard that is finished."""
        for name in ("gram", "drift_IO", "tokens_E"):
            tensor = getattr(sums, name)
            if tensor.numel():  # the same ones on all ranks
                self.sums.setdefault(name, TreeSum(self.num_shards)).add(shard, tensor)

    def total(self) -> SiteSums | None:
        """All of them on rank 0; None elsewhere."""
        totals = {name: each.total() for name, each in self.sums.items()}
        packed = totals.pop("gram")
        if packed is None:
            return None
        gram = unpacked(packed, self.inputs.width)
        return SiteSums(gram, totals.get("drift_IO"), totals.get("tokens_E"))
