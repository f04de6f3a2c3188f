"""Decoders whose layers differ in width, built from transformers' own blocks.

The widths are the config's `per_layer_config`, a mapping from layers to what is different there
(`num_attention_heads`, `num_key_value_heads`, `intermediate_size`, or `skip: ["attention"]` for a
layer without).  transformers keeps that record but builds every layer alike; here each block is
built from its own layer's config.

This file stands alone: it is copied into checkpoints as `modeling_lightstride.py`, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` opens them anywhere.
Importing it defines classes and runs nothing else.

To add a family: a config with its `model_type`, a headless model with its `block_class`, a causal
model with its `model_class`; and a line in `register.py`.
"""

import copy
from typing import Any, ClassVar, TypeVar, cast

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.granite.modeling_granite import GraniteDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

C = TypeVar("C", bound=PreTrainedConfig)


class LayerView:
    """The whole model's config with some values of one layer's own.

    For attention code that reads a width in `forward` and everything else, such as the attention
    implementation, which may change any time, from the whole model.
    """

    def __init__(self, whole: PreTrainedConfig, own: dict[str, int]) -> None:
        self.whole = whole
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> object:
        if name == "whole":  # a copy in the making
            raise AttributeError(name)
        return getattr(self.whole, name)

    @classmethod
    def override_for(cls, module: nn.Module, **own: int) -> None:
        """Let a module see these values in its config, whatever the whole config says."""
        config: Any = module.config
        view: Any = cls(getattr(config, "whole", config), own)
        module.config = view


class Absent(nn.Module):
    """In the place of an attention that is gone: it adds nothing and stores nothing.

    transformers would take "Attention" in its name for a file that computes attention its own way.
    """

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


def leave_out_attention(block: nn.Module) -> None:
    """Take its attention, and the norm before it, out of a block."""
    block.self_attn = Absent()
    block.input_layernorm = nn.Identity()


def has_attention(layer: PreTrainedConfig) -> bool:
    """Whether a layer with this config has an attention."""
    return "attention" not in getattr(layer, "skip", ())


def without_layers(config: C) -> C:
    """A config to build everything but the layers from; global widths are the first layer's."""
    bare = cast(C, copy.copy(config.per_layer_config[0]))
    bare.num_hidden_layers = 0
    return bare


def use_whole_config(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """End of a constructor that began `without_layers`: the model gets the whole config."""
    config._attn_implementation_internal = model.config._attn_implementation_internal
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config = config
    model.post_init()


def check_heads(config: PreTrainedConfig) -> None:
    """Raise ValueError unless every layer's query heads divide evenly among its KV heads.

    The first layer needs some: transformers asks its part of a KV cache how long the text is.
    """
    if not has_attention(config.per_layer_config[0]):
        raise ValueError("layer 0 has no attention")
    for layer in range(config.num_hidden_layers):
        own = config.per_layer_config[layer]
        heads, kv_heads = own.num_attention_heads, own.num_key_value_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"layer {layer} has {heads} query heads for {kv_heads} KV heads")


def add_blocks(
    layers: nn.ModuleList, config: PreTrainedConfig, block_class: type[nn.Module]
) -> None:
    """Append a block for every layer, as wide as its own config says."""
    for index in range(config.num_hidden_layers):
        block = block_class(config.per_layer_config[index], index)
        if not has_attention(config.per_layer_config[index]):
            leave_out_attention(block)
        for module in block.modules():
            if hasattr(module, "config"):
                setattr(module, "config", config)  # noqa: B010
        layers.append(block)


class LayeredConfig:
    """Part of the config of every family whose KV heads may have several query heads each."""

    def validate_architecture(self) -> None:
        """Check the widths of all layers, where the family's own config checks but one."""
        check_heads(cast(PreTrainedConfig, self))


class LayeredModel:
    """Part of every headless model: blocks as wide as their own configs say."""

    block_class: ClassVar[type[nn.Module]]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(without_layers(config))  # type: ignore[call-arg]
        model: Any = self
        add_blocks(getattr(model, "decoder", model).layers, config, self.block_class)
        use_whole_config(model, config)


class LayeredCausalLM:
    """Part of every causal model: a layered headless model, and the family's own head."""

    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(without_layers(config))  # type: ignore[call-arg]
        self.model = self.model_class(config)
        use_whole_config(cast(PreTrainedModel, self), config)


@strict
class LayeredLlamaConfig(LayeredConfig, transformers.LlamaConfig):
    """Config of a Llama whose layers differ."""

    model_type: ClassVar[str] = "lightstride_llama"


class LayeredLlamaModel(LayeredModel, transformers.LlamaModel):
    """A Llama whose layers differ, without its head."""

    config_class = LayeredLlamaConfig
    block_class = LlamaDecoderLayer


class LayeredLlamaForCausalLM(LayeredCausalLM, transformers.LlamaForCausalLM):
    """A Llama whose layers differ."""

    config_class = LayeredLlamaConfig
    model_class = LayeredLlamaModel


@strict
class LayeredMistralConfig(LayeredConfig, transformers.MistralConfig):
    """Config of a Mistral whose layers differ."""

    model_type: ClassVar[str] = "lightstride_mistral"


class LayeredMistralModel(LayeredModel, transformers.MistralModel):
    """A Mistral whose layers differ, without its head."""

    config_class = LayeredMistralConfig
    block_class = MistralDecoderLayer


class LayeredMistralForCausalLM(LayeredCausalLM, transformers.MistralForCausalLM):
    """A Mistral whose layers differ."""

    config_class = LayeredMistralConfig
    model_class = LayeredMistralModel


@strict
class LayeredQwen2Config(LayeredConfig, transformers.Qwen2Config):
    """Config of a Qwen2 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_qwen2"
    head_dim: int | None = None


class LayeredQwen2Model(LayeredModel, transformers.Qwen2Model):
    """A Qwen2 whose layers differ, without its head."""

    config_class = LayeredQwen2Config
    block_class = Qwen2DecoderLayer


class LayeredQwen2ForCausalLM(LayeredCausalLM, transformers.Qwen2ForCausalLM):
    """A Qwen2 whose layers differ."""

    config_class = LayeredQwen2Config
    model_class = LayeredQwen2Model


@strict
class LayeredQwen3Config(LayeredConfig, transformers.Qwen3Config):
    """Config of a Qwen3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_qwen3"


class LayeredQwen3Model(LayeredModel, transformers.Qwen3Model):
    """A Qwen3 whose layers differ, without its head."""

    config_class = LayeredQwen3Config
    block_class = Qwen3DecoderLayer


class LayeredQwen3ForCausalLM(LayeredCausalLM, transformers.Qwen3ForCausalLM):
    """A Qwen3 whose layers differ."""

    config_class = LayeredQwen3Config
    model_class = LayeredQwen3Model


@strict
class LayeredGemma3TextConfig(LayeredConfig, transformers.Gemma3TextConfig):
    """Config of a Gemma 3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_gemma3_text"


class LayeredGemma3TextModel(LayeredModel, transformers.Gemma3TextModel):
    """A Gemma 3 whose layers differ, without its head."""

    config_class = LayeredGemma3TextConfig
    block_class = Gemma3DecoderLayer


class LayeredGemma3ForCausalLM(LayeredCausalLM, transformers.Gemma3ForCausalLM):
    """A Gemma 3 whose layers differ."""

    config_class = LayeredGemma3TextConfig
    model_class = LayeredGemma3TextModel


@strict
class LayeredGraniteConfig(LayeredConfig, transformers.GraniteConfig):
    """Config of a Granite whose layers differ."""

    model_type: ClassVar[str] = "lightstride_granite"
    head_dim: int | None = None


class LayeredGraniteModel(LayeredModel, transformers.GraniteModel):
    """A Granite whose layers differ, without its head."""

    config_class = LayeredGraniteConfig
    block_class = GraniteDecoderLayer


class LayeredGraniteForCausalLM(LayeredCausalLM, transformers.GraniteForCausalLM):
    """A Granite whose layers differ."""

    config_class = LayeredGraniteConfig
    model_class = LayeredGraniteModel


@strict
class LayeredOlmo2Config(LayeredConfig, transformers.Olmo2Config):
    """Config of an OLMo 2 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_olmo2"
    head_dim: int | None = None


class LayeredOlmo2Model(LayeredModel, transformers.Olmo2Model):
    """An OLMo 2 whose layers differ, without its head."""

    config_class = LayeredOlmo2Config
    block_class = Olmo2DecoderLayer


class LayeredOlmo2ForCausalLM(LayeredCausalLM, transformers.Olmo2ForCausalLM):
    """An OLMo 2 whose layers differ."""

    config_class = LayeredOlmo2Config
    model_class = LayeredOlmo2Model


@strict
class LayeredPhi3Config(LayeredConfig, transformers.Phi3Config):
    """Config of a Phi-3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_phi3"
    head_dim: int | None = None

    def validate_rope(self) -> None:
        """As for the dense Phi-3, whose check takes the head size from the number of heads."""
        dense = without_layers(self)
        dense.num_attention_heads = self.hidden_size // (self.head_dim or 1)
        transformers.Phi3Config.validate_rope(dense)


class LayeredPhi3Model(LayeredModel, transformers.Phi3Model):
    """A Phi-3 whose layers differ, without its head."""

    config_class = LayeredPhi3Config
    block_class = Phi3DecoderLayer

    def __init__(self, config: LayeredPhi3Config) -> None:
        super().__init__(config)
        for index, block in enumerate(self.layers):
            heads = config.per_layer_config[index].num_attention_heads
            LayerView.override_for(block.get_submodule("self_attn"), num_attention_heads=heads)


class LayeredPhi3ForCausalLM(LayeredCausalLM, transformers.Phi3ForCausalLM):
    """A Phi-3 whose layers differ."""

    config_class = LayeredPhi3Config
    model_class = LayeredPhi3Model


@strict
class LayeredOPTConfig(transformers.OPTConfig):
    """Config of an OPT whose layers differ."""

    model_type: ClassVar[str] = "lightstride_opt"
    head_dim: int | None = None


class LayeredOPTDecoderLayer(OPTDecoderLayer):
    """OPT derives its head size from the number of heads, so it is built dense and then cut."""

    def __init__(self, config: transformers.OPTConfig, layer_idx: int) -> None:
        dense = copy.copy(config)
        dense.num_attention_heads = config.hidden_size // config.head_dim
        super().__init__(dense, layer_idx)
        attention, hidden_size = self.self_attn, config.hidden_size
        width, bias = config.num_attention_heads * config.head_dim, config.enable_bias
        attention.num_heads, attention.embed_dim = config.num_attention_heads, width
        attention.q_proj = nn.Linear(hidden_size, width, bias=bias)
        attention.k_proj = nn.Linear(hidden_size, width, bias=bias)
        attention.v_proj = nn.Linear(hidden_size, width, bias=bias)
        attention.out_proj = nn.Linear(width, hidden_size, bias=bias)


class LayeredOPTModel(LayeredModel, transformers.OPTModel):
    """An OPT whose layers differ, without its head."""

    config_class = LayeredOPTConfig
    block_class = LayeredOPTDecoderLayer


class LayeredOPTForCausalLM(LayeredCausalLM, transformers.OPTForCausalLM):
    """An OPT whose layers differ."""

    config_class = LayeredOPTConfig
    model_class = LayeredOPTModel
