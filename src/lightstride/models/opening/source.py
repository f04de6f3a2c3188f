"""Where a model's weights come from: a model in memory, or (`streamed.py`) shards on disk.

Code that passes through a model block by block is written against a source once.  It has the
model's modules at hand all the time; their weights are there for as long as it holds them:

    with source.blocks() as blocks:     each block in order, ready on the device, taken back when
        for block in blocks: ...        the next one is asked for
    with source.embedding(): ...        all that is needed before the first block
    with source.head(): ...             and after the last
    with source.outside_blocks(): ...   what it takes to ask the model how it calls its blocks

A model in memory is the simple case: nothing moves, unless it lies on the CPU and is computed
elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.models.families.adapter import OUTPUT_NAME, Adapter
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import config_hash, fingerprint
from lightstride.models.rebuild import block_shapes
from lightstride.models.shapes import Geometry, Shape, Site


class WeightSource(ABC):
    """A model, and its weights when they are needed."""

    model: PreTrainedModel
    """All modules; weights that are not here now are meta tensors."""
    adapter: Adapter
    device: torch.device
    """Where to compute."""
    streamed: bool
    """True if weights are read anew for every pass."""

    @property
    def geometry(self) -> Geometry:
        """Sizes and costs."""
        return self.adapter.geometry(self.model.config)

    @property
    def shapes(self) -> dict[Site, Shape]:
        """The width of every site."""
        return block_shapes(self.model)

    @abstractmethod
    def blocks(self) -> AbstractContextManager[Iterator[nn.Module]]:
        """All blocks in order, each on the device until the next is asked for."""

    @abstractmethod
    def embedding(self) -> AbstractContextManager[None]:
        """Inside, all is there that comes before the blocks."""

    @abstractmethod
    def head(self) -> AbstractContextManager[None]:
        """Inside, all is there that comes after the blocks; input embeddings may be zero."""

    @abstractmethod
    def outside_blocks(self) -> AbstractContextManager[None]:
        """Inside, the decoder runs if others stand in for its blocks; embeddings may be zero."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """A parameter that belongs to no block."""

    @abstractmethod
    def dense_outputs(self) -> Mapping[Site, Tensor]:
        """The output weights (O, I) of every site, as the model has them."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the weights (`fingerprint`)."""

    def identity(self) -> str:
        """Hash of config and weights (`model_hash`)."""
        return config_hash(self.model.config, self.fingerprint())


class Resident(WeightSource):
    """A model in memory, its blocks brought to `device` one by one if it lies elsewhere."""

    streamed = False

    def __init__(self, model: PreTrainedModel, device: torch.device | str | None = None) -> None:
        self.model = model
        self.adapter = adapter_for(model.config)
        self.device = model.device if device is None else torch.device(device)

    @contextmanager
    def blocks(self) -> Iterator[Iterator[nn.Module]]:
        with closing_iterator(self._moved()) as blocks:
            yield blocks

    def _moved(self) -> Iterator[nn.Module]:
        for block in self.adapter.blocks(self.model):
            with placed([block], self.device):
                yield block

    @contextmanager
    def embedding(self) -> Iterator[None]:
        with placed(outer_modules(self.model, self.adapter), self.device):
            yield

    head = outside_blocks = embedding

    def tensor(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()

    def dense_outputs(self) -> Mapping[Site, Tensor]:
        blocks = self.adapter.blocks(self.model)
        return {
            site: self.adapter.read(blocks[site.block], site.kind)[OUTPUT_NAME[site.kind]]
            for site in self.geometry.sites
        }

    def fingerprint(self) -> str:
        return fingerprint(self.model)


@contextmanager
def closing_iterator(blocks: Iterator[nn.Module]) -> Iterator[Iterator[nn.Module]]:
    """A generator that takes back what it gave last when the context ends, however it ends."""
    try:
        yield blocks
    finally:
        close = getattr(blocks, "close", None)
        assert close is not None, "a source's blocks are a generator"
        close()


@contextmanager
def placed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, the weights of these modules are on the device."""
    homes = [next(iter(module.parameters()), torch.empty(0)).device for module in modules]
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


def outer_modules(model: PreTrainedModel, adapter: Adapter) -> list[nn.Module]:
    """The largest modules that no block lies in, is, or lies around: embeddings, norms, head."""
    blocks = adapter.blocks(model)

    def outside(module: nn.Module) -> list[nn.Module]:
        if module is blocks:
            return []
        if not any(each is blocks for each in module.modules()):
            return [module]
        return [found for child in module.children() for found in outside(child)]

    return outside(model)
