"""Llama 1-3.x, and the names every family with separate q, k, v, gate and up shares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.models.families.adapter import OUTPUT_NAME, Adapter, Overrides, SiteWeights
from lightstride.models.shapes import (
    NO_ATTENTION,
    AttentionShape,
    FFNShape,
    Geometry,
    Kind,
    Shape,
)
from lightstride.models.uneven.modeling import Absent, has_attention, leave_out_attention


class FixedOutput(nn.Module):
    """Stands in for a site and answers a tensor computed before."""

    def __init__(self, output_BLD: Tensor, *, as_tuple: bool) -> None:
        super().__init__()
        self.output = (output_BLD, None) if as_tuple else output_BLD

    def forward(self, *_: object, **__: object) -> Tensor | tuple[Tensor, None]:
        return self.output


def set_linear(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    """Give a linear layer these tensors, of whatever size, without copying them."""
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    linear.register_parameter(
        "bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
    )
    linear.out_features, linear.in_features = weight_OI.shape


def set_sizes(module: nn.Module, **sizes: int) -> None:
    """Set sizes that a module keeps beside its weights."""
    for name, size in sizes.items():
        setattr(module, name, size)


@contextmanager
def swapped(block: nn.Module, **modules: nn.Module) -> Iterator[None]:
    """Inside this context the block has these submodules in the place of its own."""
    own = {name: getattr(block, name) for name in modules}
    try:
        for name, module in modules.items():
            setattr(block, name, module)
        yield
    finally:
        for name, module in own.items():
            setattr(block, name, module)


def layer_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The resolved config of every block; the same one again and again for an even model."""
    return [config.per_layer_config[block] for block in range(config.num_hidden_layers)]


def head_dim_of(layer: PreTrainedConfig) -> int:
    """Size of a head; the configs of older families leave it to be computed."""
    given = getattr(layer, "head_dim", None)
    return int(given or layer.hidden_size // layer.num_attention_heads)


class LlamaAdapter(Adapter):
    """Llama 1-3.x."""

    family: ClassVar[str] = "llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    linears: ClassVar[Mapping[Kind, Mapping[str, str]]] = {
        "attention": {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"},
        "ffn": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    }
    """Canonical names of the weights that have a linear layer of their own, and its name."""

    def geometry(self, config: PreTrainedConfig) -> Geometry:
        layers = layer_configs(config)
        hidden_size, head_dim = config.hidden_size, head_dim_of(layers[0])
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
                if has_attention(layer)
                else NO_ATTENTION
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
        return model.get_submodule("model")

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        blocks = self.decoder(model).get_submodule("layers")
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def site_module(self, block: nn.Module, kind: Kind) -> nn.Module:
        """The submodule of a block that holds a site's layers."""
        return block.get_submodule("self_attn" if kind == "attention" else "mlp")

    def read(self, block: nn.Module, kind: Kind) -> SiteWeights:
        weights: SiteWeights = {}
        module = self.site_module(block, kind)
        if isinstance(module, Absent):
            return weights
        for name, layer_name in self.linears[kind].items():
            linear = getattr(module, layer_name)
            weights[name] = linear.weight.detach()
            if linear.bias is not None:
                weights[f"{name}_bias"] = linear.bias.detach()
        return weights

    def shape(self, block: nn.Module, kind: Kind) -> Shape:
        weights = self.read(block, kind)
        if kind == "ffn":
            return FFNShape(weights["down"].shape[1])
        if not weights:
            return NO_ATTENTION
        head_dim = self.site_module(block, kind).head_dim
        assert isinstance(head_dim, int)
        num_heads, num_kv_heads = (len(weights[name]) // head_dim for name in ("query", "key"))
        return AttentionShape(num_kv_heads, num_heads // num_kv_heads)

    def write(self, block: nn.Module, kind: Kind, weights: SiteWeights, shape: Shape) -> None:
        if shape == NO_ATTENTION:
            leave_out_attention(block)
            return
        module = self.site_module(block, kind)
        for name, layer_name in self.linears[kind].items():
            set_linear(getattr(module, layer_name), weights[name], weights.get(f"{name}_bias"))
        if isinstance(shape, AttentionShape):
            set_sizes(module, num_key_value_groups=shape.queries_per_group)
        else:
            set_sizes(module, intermediate_size=shape.num_channels)

    def output_layer(self, block: nn.Module, kind: Kind) -> nn.Module:
        name = OUTPUT_NAME[kind]
        return self.site_module(block, kind).get_submodule(self.linears[kind][name])

    @contextmanager
    def bypass(self, block: nn.Module, kind: Kind, output_BLD: Tensor) -> Iterator[None]:
        answer = FixedOutput(output_BLD, as_tuple=kind == "attention")
        with swapped(block, **{"self_attn" if kind == "attention" else "mlp": answer}):
            yield

    def overrides(self, shape: Shape) -> Overrides:
        if isinstance(shape, FFNShape):
            return {"intermediate_size": shape.num_channels}
        if shape == NO_ATTENTION:
            return {"skip": ["attention"]}
        return {
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
        }
