"""A cut model that is never there as a whole: each block is cut when it passes.

Weights come from the dense source and from the levels, one site at a time, and the dense block is
put back before it is taken back.  So a cut model larger than memory is measured and saved.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from lightstride.models.families.adapter import Adapter
from lightstride.models.opening.source import WeightSource, closing_iterator
from lightstride.models.shapes import KINDS, Geometry, Kind, Shape, Site
from lightstride.prune.cut.materialize import cut_weights
from lightstride.prune.cut.refit import CutSite


class CutSource(WeightSource):
    """A dense source with these sites cut; levels are asked for when their block passes."""

    def __init__(self, whole: WeightSource, levels: Mapping[Site, CutSite]) -> None:
        self.whole, self.levels = whole, levels
        self.model, self.adapter, self.device = whole.model, whole.adapter, whole.device
        self.streamed = whole.streamed

    @property
    def shapes(self) -> dict[Site, Shape]:
        shapes = {site: level.kept.shape for site, level in self.levels.items()}
        return self.whole.shapes | shapes

    @contextmanager
    def blocks(self) -> Iterator[Iterator[nn.Module]]:
        with self.whole.blocks() as blocks, closing_iterator(self._cut(blocks)) as cut:
            yield cut

    def _cut(self, blocks: Iterator[nn.Module]) -> Iterator[nn.Module]:
        geometry = self.whole.geometry
        for index, block in enumerate(blocks):
            sites = [Site(index, kind) for kind in KINDS]
            levels = {site.kind: self.levels[site] for site in sites if site in self.levels}
            shapes = {site.kind: geometry.shape(site) for site in sites}
            with cut_block(self.adapter, geometry, block, levels, shapes):
                del levels
                yield block

    def embedding(self) -> AbstractContextManager[None]:
        return self.whole.embedding()

    def head(self) -> AbstractContextManager[None]:
        return self.whole.head()

    def outside_blocks(self) -> AbstractContextManager[None]:
        return self.whole.outside_blocks()

    def tensor(self, name: str) -> Tensor:
        return self.whole.tensor(name)

    def dense_outputs(self) -> Mapping[Site, Tensor]:
        raise AssertionError("a cut model is not cut again")

    def fingerprint(self) -> str:
        raise AssertionError("a cut model has no name before it is saved")


@contextmanager
def cut_block(
    adapter: Adapter,
    geometry: Geometry,
    block: nn.Module,
    levels: Mapping[Kind, CutSite],
    dense: Mapping[Kind, Shape],
) -> Iterator[None]:
    """Inside, the block's sites are cut to these levels; afterwards it has its own weights."""
    weights = {kind: adapter.read(block, kind) for kind in levels}
    modules = dict(block._modules)
    for kind, level in levels.items():
        cut = cut_weights(weights[kind], level, dense[kind], geometry.head_dim)
        adapter.write(block, kind, cut, level.kept.shape)
    try:
        yield
    finally:
        block._modules.update(modules)  # an attention that was taken out
        for kind, own in weights.items():
            adapter.write(block, kind, own, dense[kind])
