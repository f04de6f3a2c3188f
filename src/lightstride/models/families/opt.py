"""OPT: biases everywhere, no gate, as many KV heads as query heads.

The feed-forward layers lie in the block itself and see all tokens of a batch in one row.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.models.families.adapter import Overrides, SiteWeights
from lightstride.models.families.llama import (
    FixedOutput,
    LlamaAdapter,
    head_dim_of,
    layer_configs,
    set_linear,
    set_sizes,
    swapped,
)
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Kind, Shape


class OPTAdapter(LlamaAdapter):
    """OPT, with norms before (most sizes) or after (350M) the sites."""

    family: ClassVar[str] = "opt"
    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    linears: ClassVar[Mapping[Kind, Mapping[str, str]]] = {
        "attention": {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"},
        "ffn": {"up": "fc1", "down": "fc2"},
    }

    def geometry(self, config: PreTrainedConfig) -> Geometry:
        layers = layer_configs(config)
        hidden_size, head_dim = config.hidden_size, head_dim_of(layers[0])
        bias = bool(config.enable_bias)
        return Geometry(
            family=self.family,
            hidden_size=hidden_size,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            tied_head=bool(config.tie_word_embeddings),
            attention=tuple(AttentionShape(layer.num_attention_heads, 1) for layer in layers),
            ffn=tuple(FFNShape(layer.ffn_dim) for layer in layers),
            query_head_parameters=head_dim * (2 * hidden_size + bias),
            kv_head_parameters=2 * head_dim * (hidden_size + bias),
            channel_parameters=2 * hidden_size + bias,
            attention_fixed=hidden_size * bias,
            ffn_fixed=hidden_size * bias,
        )

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule("model.decoder")

    def site_module(self, block: nn.Module, kind: Kind) -> nn.Module:
        return block.get_submodule("self_attn") if kind == "attention" else block

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        module = self.site_module(block, kind)
        for name, layer_name in self.linears[kind].items():
            set_linear(getattr(module, layer_name), weights[name], weights.get(f"{name}_bias"))
        if isinstance(shape, AttentionShape):
            assert shape.queries_per_group == 1, "an OPT's KV head has one query head"
            set_sizes(module, num_heads=shape.num_heads, embed_dim=len(weights["query"]))

    @contextmanager
    def bypass(self, block: nn.Module, kind: Kind, output_BLD: Tensor) -> Iterator[None]:
        if kind == "attention":
            with super().bypass(block, kind, output_BLD):
                yield
            return
        answer = FixedOutput(output_BLD.flatten(0, 1), as_tuple=False)
        with swapped(block, fc1=nn.Identity(), activation_fn=nn.Identity(), fc2=answer):
            yield

    def overrides(self, shape: Shape) -> Overrides:
        if isinstance(shape, FFNShape):
            return {"ffn_dim": shape.num_channels}
        return {"num_attention_heads": shape.num_heads}
