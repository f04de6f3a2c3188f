"""Qwen3 with experts: Qwen3's attention, and FFNs of several experts that a router chooses from.

All experts of a block are one site (`shapes.py`): the canonical `gate`, `up` and `down` are those
of one expert after the other, `router` (E, D) has a row for each.  The router is no part of what is
counted; its rows go with experts that have lost all channels.  `router_bias` (E,) is for masked
twins alone: minus infinity for these.

Blocks are read and written as `uneven/experts.py` builds them; `state` brings the weights of
transformers' own class, and `parts` those of published files, into that layout.
"""

import re
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.models.families.adapter import Overrides, Parts, SiteWeights
from lightstride.models.families.llama import layer_configs
from lightstride.models.families.qwen3 import Qwen3Adapter
from lightstride.models.shapes import FFNShape, Geometry, Kind, Shape
from lightstride.models.uneven.experts import has_experts, widths_of

PLACES = {
    "gate": ("inner", "gate_proj"),
    "up": ("inner", "up_proj"),
    "down": ("down", "weight"),
    "router": ("gate", "weight"),
    "router_bias": ("gate", "bias"),
}
"""Where a block's FFN has its weights, by their canonical names."""
STACKED = re.compile(r"(.*\.mlp)\.(?:inner\.(gate_proj|up_proj)|(down)\.weight)")
FUSED = re.compile(r"(.*\.mlp)\.experts\.(?:(gate_up_proj)|down_proj)")


class Qwen3MoeAdapter(Qwen3Adapter):
    """Qwen3 with experts in all blocks, or in some."""

    family: ClassVar[str] = "qwen3_moe"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe",)

    def geometry(self, config: PreTrainedConfig) -> Geometry:
        layers = layer_configs(config)
        return replace(
            super().geometry(config),
            ffn=tuple(
                expert_shape(widths_of(layer))
                if has_experts(layer, index)
                else FFNShape(layer.intermediate_size)
                for index, layer in enumerate(layers)
            ),
            experts_per_token=config.num_experts_per_tok,
        )

    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        if not self._has_experts(block, kind):
            return super().read(block, kind)
        found = {
            name: getattr(self.site_module(block, kind).get_submodule(module), own)
            for name, (module, own) in PLACES.items()
        }
        return {name: weight.detach() for name, weight in found.items() if weight is not None}

    def shape(self, block: nn.Module, kind: Kind) -> Shape:
        if kind == "attention":
            return super().shape(block, kind)
        module = self.site_module(block, kind)
        fused = getattr(module, "experts", None)
        if fused is not None:
            num_experts, _, width = fused.down_proj.shape
            return expert_shape((width,) * num_experts)
        if not self._has_experts(block, kind):
            return super().shape(block, kind)
        return expert_shape(tuple(getattr(module, "widths")))  # noqa: B009

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        if not self._has_experts(block, kind):
            super().write(block, kind, weights, shape)
            return
        assert isinstance(shape, FFNShape)
        module = self.site_module(block, kind)
        for name, (owner, own) in PLACES.items():
            weight = weights.get(name)
            parameter = None if weight is None else nn.Parameter(weight, requires_grad=False)
            module.get_submodule(owner).register_parameter(own, parameter)
        assert sum(shape.experts) == weights["down"].shape[1]
        assert len(shape.experts) == len(weights["router"])
        setattr(module, "widths", shape.experts)  # noqa: B010

    def output_layer(self, block: nn.Module, kind: Kind) -> nn.Module:
        if not self._has_experts(block, kind):
            return super().output_layer(block, kind)
        return self.site_module(block, kind).get_submodule("down")

    def overrides(self, shape: Shape) -> Overrides:
        if isinstance(shape, FFNShape) and shape.experts:
            return {"expert_widths": list(shape.experts)}
        return super().overrides(shape)

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        state = dict(model.state_dict())
        for name in list(state):
            found = FUSED.fullmatch(name)
            if not found:
                continue
            weight = state.pop(name)
            if not found[2]:
                state[f"{found[1]}.down.weight"] = weight.transpose(0, 1).flatten(1).contiguous()
                continue
            for own, half_EWD in zip(("gate_proj", "up_proj"), weight.chunk(2, 1), strict=True):
                state[f"{found[1]}.inner.{own}"] = half_EWD.flatten(0, 1).contiguous()
        return state

    def parts(self, name: str, config: PreTrainedConfig) -> Parts | None:
        found = STACKED.fullmatch(name)
        if not found:
            return None
        own = f"{found[3]}_proj" if found[3] else found[2]
        names = [f"{found[1]}.experts.{each}.{own}.weight" for each in range(config.num_experts)]
        return names, 1 if found[3] else 0

    def _has_experts(self, block: nn.Module, kind: Kind) -> bool:
        return kind == "ffn" and hasattr(self.site_module(block, kind), "inner")


def expert_shape(widths: tuple[int, ...]) -> FFNShape:
    """The shape of an FFN whose experts have these widths."""
    return FFNShape(sum(widths), widths)
