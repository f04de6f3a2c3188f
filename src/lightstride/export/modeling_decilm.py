"""A Llama whose blocks differ, in the words of DeciLM, for engines that know these: FFNs may have
any width in multiples of 256, and attention may be missing.

vLLM, SGLang and TensorRT-LLM have DeciLM built in and read `block_configs` from the config; they
take only the config class from this file.  transformers takes the model class too.  The file
stands alone: it is copied into checkpoints as it is.
"""

from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

WIDTH_MULTIPLE = 256


def ffn_width(ffn_mult: float, hidden_size: int) -> int:
    """Channels of an FFN, as every engine computes them from `ffn_mult`."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


class Absent(nn.Module):
    """In the place of an attention that is gone: it adds nothing and stores nothing.

    transformers would take "Attention" in its name for a file that computes attention its own way.
    """

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


@strict
class DeciLMConfig(LlamaConfig):
    """Llama's settings and, for every block, those of its attention and of its FFN."""

    model_type = "nemotron-nas"
    block_configs: list[Any] | None = None
    qkv_bias: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.block_configs = [as_object(block) for block in self.block_configs or []]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return super().to_dict() | {"block_configs": [as_dict(b) for b in self.block_configs or []]}


class DeciLMForCausalLM(LlamaForCausalLM):
    """The model that these settings describe."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        for layer, block in zip(self.model.layers, config.block_configs or [], strict=True):
            layer.mlp = LlamaMLP(
                SimpleNamespace(
                    hidden_size=config.hidden_size,
                    intermediate_size=ffn_width(block.ffn.ffn_mult, config.hidden_size),
                    mlp_bias=config.mlp_bias,
                    hidden_act=config.hidden_act,
                )
            )
            if block.attention.no_op:
                layer.self_attn, layer.input_layernorm = Absent(), nn.Identity()
            elif config.qkv_bias:
                for name in ("q_proj", "k_proj", "v_proj"):
                    old = getattr(layer.self_attn, name)
                    setattr(layer.self_attn, name, nn.Linear(old.in_features, old.out_features))
        self.post_init()  # type: ignore[no-untyped-call]


def as_object(value: object) -> object:
    """Dictionaries as objects with attributes, all the way down."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: as_object(entry) for key, entry in value.items()})
    return value


def as_dict(value: object) -> object:
    """Objects with attributes as dictionaries, all the way down."""
    if isinstance(value, SimpleNamespace):
        return {key: as_dict(entry) for key, entry in vars(value).items()}
    return value
