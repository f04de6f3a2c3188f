"""Put cut sites into a model: in place, as a new smaller model, or as its masked twin.

What a cut removes: an FFN channel is a row of gate and up and a column of down; a query head is
its rows of q and its columns of o; a KV group is its rows of k and v and its query heads; an
attention without groups is taken out whole.  The
output weights of kept units come refitted from a `CutSite`; all other weights are slices of the
dense ones.  An expert that keeps no channel goes with its row of the router, which then chooses
from the others.  The masked twin has zeros where the smaller model has nothing, and so gives the
same logits; it is the plain way, for tests.

Shapes as in `models/adapter.py`; K kept inputs of the output weights, E experts.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.families.adapter import OUTPUT_NAME, Adapter, Overrides, SiteWeights
from lightstride.models.shapes import (
    AttentionKept,
    Geometry,
    Kept,
    Shape,
    Site,
)
from lightstride.prune.cut.choose_units import head_columns
from lightstride.prune.cut.head_norms import cut_norms, masked_norms
from lightstride.prune.cut.refit import CutSite, kept_inputs


def kept_rows(kept: Kept, dense: Shape, head_dim: int) -> dict[str, Tensor]:
    """For every input-side weight of a site, the rows that stay."""
    columns_K = kept_inputs(kept, dense, head_dim)
    if not isinstance(kept, AttentionKept):
        experts = torch.tensor(list(kept.widths), dtype=torch.long)
        return {"gate": columns_K, "up": columns_K, "router": experts}
    rows = head_columns(kept.groups, head_dim)
    return {"query": columns_K, "key": rows, "value": rows}


def cut_weights(dense: SiteWeights, level: CutSite, shape: Shape, head_dim: int) -> SiteWeights:
    """The weights of a site of dense `shape`, cut to a level, in the dense weights' type."""
    cut: SiteWeights = {}
    for name, rows in kept_rows(level.kept, shape, head_dim).items():
        for part in (name, f"{name}_bias"):
            if part in dense:
                cut[part] = dense[part].index_select(0, rows.to(dense[part].device))
    norms = cut_norms(dense, kept_rows(level.kept, shape, head_dim))
    return cut | norms | output_weights(dense, level)


def masked_weights(dense: SiteWeights, level: CutSite, shape: Shape, head_dim: int) -> SiteWeights:
    """The weights of a site of dense `shape`, with zero output weights for the units that go.

    Norms over all heads and their inputs are masked too (`head_norms.py`), and routers choose none
    of the experts that go.
    """
    cut = output_weights(dense, level)
    name = output_name(dense)
    columns_K = kept_inputs(level.kept, shape, head_dim).to(dense[name].device)
    masked = torch.zeros_like(dense[name])
    masked[:, columns_K] = cut[name]
    return dense | masked_inputs(dense, level.kept, shape, head_dim) | cut | {name: masked}


def masked_inputs(dense: SiteWeights, kept: Kept, shape: Shape, head_dim: int) -> SiteWeights:
    """The weights before the output weights that the masked twin has its own of."""
    rows = kept_rows(kept, shape, head_dim)
    if "router" not in dense:
        return masked_norms(dense, rows)
    if len(rows["router"]) == len(dense["router"]):
        return {}
    closed_E = torch.full_like(dense["router"][:, 0], -torch.inf)
    return {"router_bias": closed_E.index_fill(0, rows["router"].to(closed_E.device), 0.0)}


def output_name(weights: SiteWeights) -> str:
    """Name of the output weights among a site's weights."""
    return next(name for name in OUTPUT_NAME.values() if name in weights)


def output_weights(dense: SiteWeights, level: CutSite) -> SiteWeights:
    """Output weights and bias of a level, in the dense weights' type and place.

    A site that keeps nothing answers nothing, so its bias goes too.
    """
    name = output_name(dense)
    output = {name: level.output_OK.to(dense[name])}
    bias = level.bias_O if level.bias_O is not None else dense.get(f"{name}_bias")
    if bias is None:
        return output
    if not output[name].shape[1]:
        bias = torch.zeros_like(bias)
    return output | {f"{name}_bias": bias.to(dense[name])}


@dataclass(frozen=True)
class DenseSites:
    """The weights of every site as they are now, remembered by reference, not copied."""

    geometry: Geometry
    weights: Mapping[Site, SiteWeights]

    @classmethod
    def of(cls, model: PreTrainedModel, adapter: Adapter) -> "DenseSites":
        """The sites of a dense model."""
        geometry = adapter.geometry(model.config)
        blocks = adapter.blocks(model)
        weights = {site: adapter.read(blocks[site.block], site.kind) for site in geometry.sites}
        return cls(geometry, weights)

    def cut(self, site: Site, level: CutSite | None) -> tuple[SiteWeights, Shape]:
        """Weights and shape of a site at a level; None is the dense site."""
        dense, shape = self.weights[site], self.geometry.shape(site)
        if level is None:
            return dense, shape
        return cut_weights(dense, level, shape, self.geometry.head_dim), level.kept.shape


def install(
    model: PreTrainedModel,
    adapter: Adapter,
    dense: DenseSites,
    levels: Mapping[Site, CutSite | None],
) -> None:
    """Cut these sites of a model in place, each from its dense weights; None puts those back.

    `dense` comes from `DenseSites.of` before the first cut.  The model's config is left as
    it is: it still says the dense widths.  An attention that was lost whole is not put back.
    """
    blocks = adapter.blocks(model)
    for site, level in levels.items():
        weights, shape = dense.cut(site, level)
        adapter.write(blocks[site.block], site.kind, weights, shape)


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A new model with a config of its own, whose weights are those of `model`, not copies."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def materialize(
    model: PreTrainedModel, adapter: Adapter, levels: Mapping[Site, CutSite]
) -> PreTrainedModel:
    """A new smaller model with these sites cut; all other weights are shared with `model`."""
    dense = DenseSites.of(model, adapter)
    smaller = sharing_copy(model)
    install(smaller, adapter, dense, levels)
    shapes = {site: dense.geometry.shape(site) for site in dense.geometry.sites}
    shapes |= {site: level.kept.shape for site, level in levels.items()}
    configure(smaller, adapter, shapes, dense.geometry)
    return smaller


def configure(
    model: PreTrainedModel, adapter: Adapter, shapes: Mapping[Site, Shape], geometry: Geometry
) -> None:
    """Make a model's config say these widths: for all blocks at once, or block by block."""
    overrides: list[Overrides] = [{} for _ in range(geometry.num_blocks)]
    for site, shape in shapes.items():
        overrides[site.block] |= adapter.overrides(shape)
    model.config.head_dim = geometry.head_dim  # some families would derive it from the heads
    if all(override == overrides[0] for override in overrides):
        for key, value in overrides[0].items():
            setattr(model.config, key, value)
    else:
        model.config.per_layer_config = dict(enumerate(overrides))


def mask(
    model: PreTrainedModel, adapter: Adapter, levels: Mapping[Site, CutSite]
) -> PreTrainedModel:
    """The masked twin: a new model of the old widths, with zeros for the units that go."""
    dense = DenseSites.of(model, adapter)
    twin = sharing_copy(model)
    blocks = adapter.blocks(twin)
    for site, level in levels.items():
        shape = dense.geometry.shape(site)
        weights = masked_weights(dense.weights[site], level, shape, dense.geometry.head_dim)
        adapter.write(blocks[site.block], site.kind, weights, shape)
    return twin
