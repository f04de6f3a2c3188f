"""Phi-3 and Phi-3.5 mini: q, k and v in one linear layer, gate and up in another.

Shapes: as in `adapter.py`.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from lightstride.models.families.adapter import OUTPUT_NAME, SiteWeights
from lightstride.models.families.llama import LlamaAdapter, set_linear, set_sizes
from lightstride.models.shapes import AttentionShape, Kind, Shape
from lightstride.models.uneven.modeling import LayerView


class Phi3Adapter(LlamaAdapter):
    """Phi-3 and Phi-3.5, without experts or eyes."""

    family: ClassVar[str] = "phi3"
    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    linears: ClassVar[Mapping[Kind, Mapping[str, str]]] = {
        "attention": {"output": "o_proj"},
        "ffn": {"down": "down_proj"},
    }
    fused: ClassVar[Mapping[Kind, tuple[str, tuple[str, ...]]]] = {
        "attention": ("qkv_proj", ("query", "key", "value")),
        "ffn": ("gate_up_proj", ("gate", "up")),
    }
    """The layer that holds several weights one after the other, and their canonical names."""

    def biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return False, False, False

    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        rest = super().read(block, kind)
        layer_name, names = self.fused[kind]
        weight_OD = getattr(self.site_module(block, kind), layer_name).weight.detach()
        first = rest[OUTPUT_NAME[kind]].shape[1]
        others = (len(weight_OD) - first) // (len(names) - 1)
        parts = weight_OD.split([first] + [others] * (len(names) - 1))
        return dict(zip(names, parts, strict=True)) | rest

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        super().write(block, kind, weights, shape)
        module = self.site_module(block, kind)
        layer_name, names = self.fused[kind]
        set_linear(getattr(module, layer_name), torch.cat([weights[name] for name in names]), None)
        if isinstance(shape, AttentionShape):
            set_sizes(module, num_key_value_heads=shape.num_kv_heads)
            LayerView.override_for(module, num_attention_heads=shape.num_heads)
