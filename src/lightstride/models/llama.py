"""Llama 1-3.x, and the names every family with separate q, k, v, gate and up shares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.models.adapter import Adapter, SiteWeights
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Kind, Shape


class Answer(nn.Module):
    """Stands in for a site and answers a tensor computed before."""

    def __init__(self, output_BLD: Tensor, as_tuple: bool) -> None:
        super().__init__()
        self.output = (output_BLD, None) if as_tuple else output_BLD

    def forward(self, *_: object, **__: object) -> Tensor | tuple[Tensor, None]:
        return self.output


def set_linear(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    """Give a linear layer these tensors, of whatever size, without copying them."""
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    linear.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
    linear.out_features, linear.in_features = weight_OI.shape


def layer_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The resolved config of every block; the same one again and again for an even model."""
    if getattr(config, "per_layer_config", None):
        return [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    return [config] * config.num_hidden_layers


class LlamaAdapter(Adapter):
    """Llama 1-3.x."""

    family: ClassVar[str] = "llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    linears: ClassVar[Mapping[Kind, Mapping[str, str]]] = {
        "attention": {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"},
        "ffn": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    }

    def geometry(self, config: PreTrainedConfig) -> Geometry:
        layers = layer_configs(config)
        hidden_size = config.hidden_size
        head_dim = layers[0].head_dim or hidden_size // layers[0].num_attention_heads
        query_bias, output_bias, ffn_bias = self.biases(config)
        return Geometry(
            family=self.family,
            hidden_size=hidden_size,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            tied_head=bool(config.tie_word_embeddings),
            attention=tuple(
                AttentionShape(
                    layer.num_key_value_heads,
                    layer.num_attention_heads // layer.num_key_value_heads,
                )
                for layer in layers
            ),
            ffn=tuple(FFNShape(layer.intermediate_size) for layer in layers),
            query_head_parameters=head_dim * (2 * hidden_size + query_bias),
            kv_head_parameters=2 * head_dim * (hidden_size + query_bias),
            channel_parameters=3 * hidden_size + 2 * ffn_bias,
            attention_fixed=hidden_size * output_bias,
            ffn_fixed=hidden_size * ffn_bias,
        )

    def biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        """Whether q, k, v, whether o, and whether the FFN's layers have biases."""
        attention_bias = bool(getattr(config, "attention_bias", False))
        return attention_bias, attention_bias, bool(getattr(config, "mlp_bias", False))

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.model.layers

    def site_module(self, block: nn.Module, kind: Kind) -> nn.Module:
        """The submodule of a block that holds a site's layers."""
        return block.self_attn if kind == "attention" else block.mlp

    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        weights: SiteWeights = {}
        module = self.site_module(block, kind)
        for name, layer_name in self.linears[kind].items():
            linear = getattr(module, layer_name)
            weights[name] = linear.weight.detach()
            if linear.bias is not None:
                weights[f"{name}_bias"] = linear.bias.detach()
        return weights

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        module = self.site_module(block, kind)
        for name, layer_name in self.linears[kind].items():
            set_linear(getattr(module, layer_name), weights[name], weights.get(f"{name}_bias"))
        if isinstance(shape, AttentionShape):
            module.num_key_value_groups = shape.queries_per_group
        else:
            module.intermediate_size = shape.num_channels

    def output_linear(self, block: nn.Module, kind: Kind) -> nn.Linear:
        name = "output" if kind == "attention" else "down"
        linear = getattr(self.site_module(block, kind), self.linears[kind][name])
        assert isinstance(linear, nn.Linear)
        return linear

    @contextmanager
    def bypass(self, block: nn.Module, kind: Kind, output_BLD: Tensor) -> Iterator[None]:
        name = "self_attn" if kind == "attention" else "mlp"
        module = getattr(block, name)
        setattr(block, name, Answer(output_BLD, as_tuple=kind == "attention"))
        try:
            yield
        finally:
            setattr(block, name, module)

    def overrides(self, shape: Shape) -> dict[str, int]:
        if isinstance(shape, FFNShape):
            return {"intermediate_size": shape.num_channels}
        return {
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
        }
