"""Decoders whose layers differ in width, built from transformers' own blocks.

The widths are the config's `per_layer_config`, a mapping from layers to what is different there
(`num_attention_heads`, `num_key_value_heads`, `intermediate_size`, or `skip: ["attention"]` for a
layer without).  transformers keeps that record but builds every layer alike; here each block is
built from its own layer's config.

This file stands alone: it is copied into checkpoints as `modeling_lightstride.py`, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` opens them anywhere.
Nothing in it is run but the classes it defines.
"""

import copy
from typing import Any, ClassVar, TypeVar, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    OPTConfig,
    OPTForCausalLM,
    OPTModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
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
    def give(cls, module: nn.Module, **own: int) -> None:
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


def shell(config: C) -> C:
    """A config to build everything but the layers from; global widths are the first layer's."""
    bare = cast(C, copy.copy(config.per_layer_config[0]))
    bare.num_hidden_layers = 0
    return bare


def settle(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """End of a constructor that began with a shell: the model gets the whole config."""
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


@strict
class LayeredLlamaConfig(LlamaConfig):
    """Config of a Llama whose layers differ."""

    model_type: ClassVar[str] = "lightstride_llama"

    def validate_architecture(self) -> None:
        check_heads(self)


class LayeredLlamaModel(LlamaModel):
    """A Llama whose layers differ, without its head."""

    config_class = LayeredLlamaConfig

    def __init__(self, config: LayeredLlamaConfig) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, LlamaDecoderLayer)
        settle(self, config)


class LayeredLlamaForCausalLM(LlamaForCausalLM):
    """A Llama whose layers differ."""

    config_class = LayeredLlamaConfig

    def __init__(self, config: LayeredLlamaConfig) -> None:
        super().__init__(shell(config))
        self.model = LayeredLlamaModel(config)
        settle(self, config)


@strict
class LayeredMistralConfig(MistralConfig):
    """Config of a Mistral whose layers differ."""

    model_type: ClassVar[str] = "lightstride_mistral"

    def validate_architecture(self) -> None:
        check_heads(self)


class LayeredMistralModel(MistralModel):
    """A Mistral whose layers differ, without its head."""

    config_class = LayeredMistralConfig

    def __init__(self, config: LayeredMistralConfig) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, MistralDecoderLayer)
        settle(self, config)


class LayeredMistralForCausalLM(MistralForCausalLM):
    """A Mistral whose layers differ."""

    config_class = LayeredMistralConfig

    def __init__(self, config: LayeredMistralConfig) -> None:
        super().__init__(shell(config))
        self.model = LayeredMistralModel(config)
        settle(self, config)


@strict
class LayeredQwen2Config(Qwen2Config):
    """Config of a Qwen2 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_qwen2"
    head_dim: int | None = None

    def validate_architecture(self) -> None:
        check_heads(self)


class LayeredQwen2Model(Qwen2Model):
    """A Qwen2 whose layers differ, without its head."""

    config_class = LayeredQwen2Config

    def __init__(self, config: LayeredQwen2Config) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, Qwen2DecoderLayer)
        settle(self, config)


class LayeredQwen2ForCausalLM(Qwen2ForCausalLM):
    """A Qwen2 whose layers differ."""

    config_class = LayeredQwen2Config

    def __init__(self, config: LayeredQwen2Config) -> None:
        super().__init__(shell(config))
        self.model = LayeredQwen2Model(config)
        settle(self, config)


@strict
class LayeredQwen3Config(Qwen3Config):
    """Config of a Qwen3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_qwen3"

    def validate_architecture(self) -> None:
        check_heads(self)


class LayeredQwen3Model(Qwen3Model):
    """A Qwen3 whose layers differ, without its head."""

    config_class = LayeredQwen3Config

    def __init__(self, config: LayeredQwen3Config) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, Qwen3DecoderLayer)
        settle(self, config)


class LayeredQwen3ForCausalLM(Qwen3ForCausalLM):
    """A Qwen3 whose layers differ."""

    config_class = LayeredQwen3Config

    def __init__(self, config: LayeredQwen3Config) -> None:
        super().__init__(shell(config))
        self.model = LayeredQwen3Model(config)
        settle(self, config)


@strict
class LayeredGemma3TextConfig(Gemma3TextConfig):
    """Config of a Gemma 3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_gemma3_text"

    def validate_architecture(self) -> None:
        check_heads(self)


class LayeredGemma3TextModel(Gemma3TextModel):
    """A Gemma 3 whose layers differ, without its head."""

    config_class = LayeredGemma3TextConfig

    def __init__(self, config: LayeredGemma3TextConfig) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, Gemma3DecoderLayer)
        settle(self, config)


class LayeredGemma3ForCausalLM(Gemma3ForCausalLM):
    """A Gemma 3 whose layers differ."""

    config_class = LayeredGemma3TextConfig

    def __init__(self, config: LayeredGemma3TextConfig) -> None:
        super().__init__(shell(config))
        self.model = LayeredGemma3TextModel(config)
        settle(self, config)


@strict
class LayeredPhi3Config(Phi3Config):
    """Config of a Phi-3 whose layers differ."""

    model_type: ClassVar[str] = "lightstride_phi3"
    head_dim: int | None = None

    def validate_architecture(self) -> None:
        check_heads(self)

    def validate_rope(self) -> None:
        """As for the dense Phi-3, whose check takes the head size from the number of heads."""
        dense = shell(self)
        dense.num_attention_heads = self.hidden_size // (self.head_dim or 1)
        Phi3Config.validate_rope(dense)


class LayeredPhi3Model(Phi3Model):
    """A Phi-3 whose layers differ, without its head."""

    config_class = LayeredPhi3Config

    def __init__(self, config: LayeredPhi3Config) -> None:
        super().__init__(shell(config))
        add_blocks(self.layers, config, Phi3DecoderLayer)
        for index, block in enumerate(self.layers):
            heads = config.per_layer_config[index].num_attention_heads
            LayerView.give(block.get_submodule("self_attn"), num_attention_heads=heads)
        settle(self, config)


class LayeredPhi3ForCausalLM(Phi3ForCausalLM):
    """A Phi-3 whose layers differ."""

    config_class = LayeredPhi3Config

    def __init__(self, config: LayeredPhi3Config) -> None:
        super().__init__(shell(config))
        self.model = LayeredPhi3Model(config)
        settle(self, config)


@strict
class LayeredOPTConfig(OPTConfig):
    """Config of an OPT whose layers differ."""

    model_type: ClassVar[str] = "lightstride_opt"
    head_dim: int | None = None


class LayeredOPTDecoderLayer(OPTDecoderLayer):
    """OPT derives its head size from the number of heads, so it is built dense and then cut."""

    def __init__(self, config: OPTConfig, layer_idx: int) -> None:
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


class LayeredOPTModel(OPTModel):
    """An OPT whose layers differ, without its head."""

    config_class = LayeredOPTConfig

    def __init__(self, config: LayeredOPTConfig) -> None:
        super().__init__(shell(config))
        add_blocks(self.decoder.layers, config, LayeredOPTDecoderLayer)
        settle(self, config)


class LayeredOPTForCausalLM(OPTForCausalLM):
    """An OPT whose layers differ."""

    config_class = LayeredOPTConfig

    def __init__(self, config: LayeredOPTConfig) -> None:
        super().__init__(shell(config))
        self.model = LayeredOPTModel(config)
        settle(self, config)
