"""OLMo 2: Llama's names, norms after attention and FFN, and norms over all heads of q and of k.

The norms after the sites stay as they are.  Those over heads belong to the attention: a cut head
takes its elements of their weights along, and what is left is normalized without it.
"""

from dataclasses import replace
from typing import ClassVar

from torch import nn
from transformers import PreTrainedConfig

from lightstride.models.families.adapter import SiteWeights
from lightstride.models.families.llama import LlamaAdapter
from lightstride.models.shapes import NO_ATTENTION, Geometry, Kind, Shape

NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}


class Olmo2Adapter(LlamaAdapter):
    """OLMo 2."""

    family: ClassVar[str] = "olmo2"
    model_types: ClassVar[tuple[str, ...]] = ("olmo2",)

    def geometry(self, config: PreTrainedConfig) -> Geometry:
        geometry = super().geometry(config)
        return replace(
            geometry,
            query_head_parameters=geometry.query_head_parameters + geometry.head_dim,
            kv_head_parameters=geometry.kv_head_parameters + geometry.head_dim,
        )

    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        weights = super().read(block, kind)
        if kind == "attention" and weights:
            module = self.site_module(block, kind)
            weights |= {name: getattr(module, own).weight.detach() for name, own in NORMS.items()}
        return weights

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        super().write(block, kind, weights, shape)
        if kind == "attention" and shape != NO_ATTENTION:
            module = self.site_module(block, kind)
            for name, own in NORMS.items():
                norm = getattr(module, own)
                norm.weight = nn.Parameter(weights[name], requires_grad=False)
