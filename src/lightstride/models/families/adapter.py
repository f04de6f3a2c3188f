"""The questions that the rest of the package asks of a model, answered by one file a family.

Only adapters know layer names.  A site's weights travel under canonical names:

    attention  query (H*d, D)   key (G*d, D)   value (G*d, D)   output (D, H*d)
    ffn        gate (C, D), absent without a gated FFN   up (C, D)   down (D, C)
               router (E, D), where experts share the channels, one after the other

and `<name>_bias` where there is one; `query_norm` (H*d,) and `key_norm` (G*d,) where one norm runs
over all heads (a norm that every head shares is no part of a site).  Routers are not counted among
a site's parameters, and `router_bias` (E,) is for masked twins alone.  Query heads are ordered
group by group.  `output` and `down` are the *output weights*: the inputs of their layers are what
is cut and refitted.

To add a family, follow `docs/recipes.md`.

Shapes: D hidden size, H query heads, G KV heads, d head size, C FFN channels, E experts, B batch,
L length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.models.shapes import Geometry, Kind, Shape

SiteWeights = dict[str, Tensor]
Overrides = dict[str, int | list[str] | list[int]]
Parts = tuple[list[str], int]
"""Names of tensors that are one parameter when joined, and along which dimension."""
OUTPUT_NAME: Mapping[Kind, str] = {"attention": "output", "ffn": "down"}
HEAD_NORMS: Mapping[str, str] = {"query_norm": "query", "key_norm": "key"}
"""Norms over all heads, and the weights whose rows they belong to."""


class Adapter(ABC):
    """One family's names and layouts. Stateless: every method is given the model or the block."""

    family: ClassVar[str]
    """Our name of the family, as in messages and on disk."""
    model_types: ClassVar[tuple[str, ...]]
    """Values of `config.model_type` this adapter answers for."""

    @abstractmethod
    def geometry(self, config: PreTrainedConfig) -> Geometry:
        """Sizes and unit costs of a model with this config, per-layer overrides included."""

    @abstractmethod
    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """The headless model: embeddings, blocks, final norm."""

    @abstractmethod
    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The list of decoder blocks; its entries may be replaced."""

    @abstractmethod
    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        """A site's weights under canonical names: views where the layout allows, not copies."""

    @abstractmethod
    def shape(self, block: nn.Module, kind: Kind) -> Shape:
        """How wide a site is now, counted from its weights."""

    @abstractmethod
    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        """Install weights of any width at a site, without copying them.

        The parameters of the site's linear layers become the given tensors, and every size the
        block remembers (head counts, features) follows `shape`.  At NO_ATTENTION the site is taken
        out for good, and weights do not matter.
        """

    @abstractmethod
    def output_layer(self, block: nn.Module, kind: Kind) -> nn.Module:
        """The layer that holds the site's output weights (o or down) as its `weight`.

        It is given their inputs (…, I), those of experts as `Routed`.
        """

    @abstractmethod
    @contextmanager
    def bypass(self, block: nn.Module, kind: Kind, output_BLD: Tensor) -> Iterator[None]:
        """Inside this context the site computes nothing and answers `output_BLD`."""
        yield

    @abstractmethod
    def overrides(self, shape: Shape) -> Overrides:
        """Config keys, with values, for this shape (for `per_layer_config`)."""

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """A model's state, under the names and in the layout of the layered class."""
        return dict(model.state_dict())

    def parts(self, name: str, config: PreTrainedConfig) -> Parts | None:
        """What published files have in the place of a parameter; None where they have it itself."""
        return None
