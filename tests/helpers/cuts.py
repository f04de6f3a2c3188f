"""For tests of models: toys of every family, and cuts of their sites by plain indexing."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.toys import TINY, tiny_llama, tiny_opt
from lightstride.models.families.adapter import HEAD_NORMS, OUTPUT_NAME, SiteWeights
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import KINDS, AttentionShape, FFNShape, Kind, Shape, Site

VARIANTS = {
    **TINY,
    "llama-bias": lambda: tiny_llama(bias=True),
    "opt-350m": lambda: tiny_opt(norm_before=False),
}


def tokens(length: int = 24) -> Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(tokens()).logits


@torch.no_grad()
def cached_logits(model: PreTrainedModel) -> Tensor:
    """The same logits, the tokens given in three parts."""
    cache, parts = None, []
    for part in tokens().split([13, 1, 10], dim=1):
        answer = model(part, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        parts.append(answer.logits)
    return torch.cat(parts, dim=1)


def kept_units(dense: Shape) -> tuple[Shape, dict[str, list[int]]]:
    """A narrower shape, and which heads, KV heads, channels or experts stay for it."""
    if isinstance(dense, FFNShape) and dense.experts:
        return kept_of_experts(dense.experts)
    if isinstance(dense, FFNShape):
        channels = list(range(0, dense.num_channels, 3))
        return FFNShape(len(channels)), {"channels": channels}
    if dense.queries_per_group == 1:
        return AttentionShape(3, 1), {"heads": [0, 2, 3], "kv_heads": [0, 2, 3]}
    return AttentionShape(1, 1), {"heads": [3], "kv_heads": [1]}


def kept_of_experts(widths: tuple[int, ...]) -> tuple[Shape, dict[str, list[int]]]:
    """The second expert goes; the others keep every second, third, ... channel."""
    starts = [sum(widths[:expert]) for expert in range(len(widths))]
    own = {
        expert: list(range(start, start + widths[expert], 2 + expert))
        for expert, start in enumerate(starts)
        if expert != 1
    }
    channels = [channel for some in own.values() for channel in some]
    narrow = FFNShape(len(channels), tuple(len(some) for some in own.values()))
    return narrow, {"channels": channels, "experts": list(own)}


def elements(units: list[int], size: int) -> Tensor:
    return (torch.tensor(units)[:, None] * size + torch.arange(size)).flatten()


def cut(weights: SiteWeights, units: dict[str, list[int]], head_dim: int) -> SiteWeights:
    """The rows and columns of the units that stay."""
    if "channels" in units:
        columns = torch.tensor(units["channels"])
        rows = {"gate": columns, "up": columns, "router": torch.tensor(units.get("experts", []))}
    else:
        columns = elements(units["heads"], head_dim)
        kv_rows = elements(units["kv_heads"], head_dim)
        rows = {"query": columns, "key": kv_rows, "value": kv_rows}
        rows |= {norm: rows[name] for norm, name in HEAD_NORMS.items()}
    narrow = {}
    for name, tensor in weights.items():
        own = rows.get(name.removesuffix("_bias"))
        if own is not None:
            narrow[name] = tensor[own]
        elif name.endswith("_bias"):
            narrow[name] = tensor
        else:
            narrow[name] = tensor[:, columns].contiguous()
    return narrow


def mask(
    weights: SiteWeights, units: dict[str, list[int]], kind: Kind, head_dim: int
) -> SiteWeights:
    """The same weights, with zeros for the inputs of the output layer that do not stay.

    A norm over all heads sees zeros too, beside larger rows that make up for them, and a router
    never chooses experts that do not stay.
    """
    name = OUTPUT_NAME[kind]
    stay = torch.zeros(weights[name].shape[1])
    stay[elements(units["heads"], head_dim) if kind == "attention" else units["channels"]] = 1
    masked = weights | {name: weights[name] * stay}
    if "experts" in units:
        masked["router_bias"] = torch.full_like(weights["router"][:, 0], -torch.inf)
        masked["router_bias"][units["experts"]] = 0
    for norm in HEAD_NORMS.keys() & weights.keys():
        rows = elements(units["heads" if norm == "query_norm" else "kv_heads"], head_dim)
        stay = torch.zeros(len(weights[norm]))
        stay[rows] = 1
        root = stay.mean().sqrt()
        masked[HEAD_NORMS[norm]] = weights[HEAD_NORMS[norm]] * stay[:, None] / root
        masked[norm] = weights[norm] * root
    return masked


def cut_block(model: PreTrainedModel, index: int, kinds: tuple[Kind, ...] = KINDS) -> None:
    """Make sites of one block narrower, in place."""
    adapter = adapter_for(model.config)
    head_dim = adapter.geometry(model.config).head_dim
    block = adapter.blocks(model)[index]
    for kind in kinds:
        narrow, units = kept_units(adapter.shape(block, kind))
        adapter.write(block, kind, cut(adapter.read(block, kind), units, head_dim), narrow)


def cut_all(model: PreTrainedModel, kinds: tuple[Kind, ...] = KINDS) -> None:
    """Make all blocks equally narrower, in place."""
    for index in range(model.config.num_hidden_layers):
        cut_block(model, index, kinds)


def config_shapes(model: PreTrainedModel) -> dict[Site, Shape]:
    """The widths that a model's config says."""
    geometry = adapter_for(model.config).geometry(model.config)
    return {site: geometry.shape(site) for site in geometry.sites}
