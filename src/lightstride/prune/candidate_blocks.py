"""A block at whatever shapes a candidate has there, and the cut weights that were used last."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lightstride.models.block_calls import Call
from lightstride.models.families.adapter import Adapter, SiteWeights
from lightstride.models.shapes import KINDS, NO_ATTENTION, Kind, Shape, Site
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.cut.refit import CutSite

CutSiteOf = Callable[[Site, Shape], CutSite]
"""A site at one of its shapes, as a supernet has it."""


class WeightCache:
    """The cut weights used last, up to a number of bytes."""

    def __init__(self, dense: DenseSites, level_of: CutSiteOf, capacity: int) -> None:
        self.dense = dense
        self.level_of = level_of
        self.capacity = capacity
        self.size = 0
        self.entries: OrderedDict[tuple[Site, Shape], tuple[SiteWeights, Shape]] = OrderedDict()

    def __call__(self, site: Site, shape: Shape) -> tuple[SiteWeights, Shape]:
        """Weights of a site at a shape, made if need be, and the shape with its experts."""
        if shape == self.dense.geometry.shape(site):
            return self.dense.cut(site, None)
        key = (site, shape)
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        weights, own = self.dense.cut(site, self.level_of(site, shape))
        self.entries[key] = weights, own
        self.size += num_bytes(weights)
        while self.size > self.capacity and len(self.entries) > 1:
            self.size -= num_bytes(self.entries.popitem(last=False)[1][0])
        return weights, own


def num_bytes(weights: SiteWeights) -> int:
    """Bytes of a site's weights."""
    return sum(tensor.nbytes for tensor in weights.values())


class CandidateBlock:
    """One block, which is given widths and run."""

    def __init__(
        self, adapter: Adapter, block: nn.Module, index: int, weights: WeightCache
    ) -> None:
        self.adapter, self.block, self.index, self.weights = adapter, block, index, weights
        geometry = weights.dense.geometry
        self.dense = {kind: geometry.shape(Site(index, kind)) for kind in KINDS}
        self.installed = dict(self.dense)

    def install(self, shapes: Mapping[Kind, Shape]) -> None:
        """Give the sites these widths; `__call__` goes around an attention that is not there."""
        for kind, shape in shapes.items():
            if self.installed[kind] == shape:
                continue
            self.installed[kind] = shape
            if shape != NO_ATTENTION:
                weights, own = self.weights(Site(self.index, kind), shape)
                self.adapter.write(self.block, kind, weights, own)

    def restore(self) -> None:
        """Make the block dense again."""
        self.install(self.dense)

    def __call__(self, hidden_BLD: Tensor, call: Call) -> Tensor:
        """Outputs of the block as it stands."""
        around: AbstractContextManager[None] = nullcontext()
        if self.installed["attention"] == NO_ATTENTION:
            around = self.adapter.bypass(self.block, "attention", torch.zeros_like(hidden_BLD))
        with around:
            output: Tensor = self.block(hidden_BLD, *call.args, **call.kwargs)
        return output
