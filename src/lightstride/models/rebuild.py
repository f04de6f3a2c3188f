"""From the widths of a model's blocks to a config and a class that describe them.

Even widths are the family's own class wherever its config can express them.  Llama's refuses heads
that do not divide the hidden size: those are Mistral's without a sliding window, which computes
the same bits.  Everything else is a layered class (`uneven/modeling.py`).  So are models with
experts, whatever their widths: they are opened in the layout in which experts can be cut.
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightstride.models.families.adapter import Overrides
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import KINDS, Shape, Site
from lightstride.models.uneven.register import LAYERED, register

Settings = dict[str, Any]
NOT_CARRIED = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "model_type",
    "per_layer_config",
    "quantization_config",
    "serialize_explicit_per_layer_config",
    "transformers_version",
)
LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")


def block_shapes(model: PreTrainedModel) -> dict[Site, Shape]:
    """The true width of every site of a model, whatever its config says."""
    adapter = adapter_for(model.config)
    return {
        Site(index, kind): adapter.shape(block, kind)
        for index, block in enumerate(adapter.blocks(model))
        for kind in KINDS
    }


def config_with_widths(config: PreTrainedConfig, shapes: Mapping[Site, Shape]) -> PreTrainedConfig:
    """A config like this one with these widths, of the plainest class that can express them."""
    adapter = adapter_for(config)
    head_dim = adapter.geometry(config).head_dim
    settings = {key: value for key, value in config.to_dict().items() if key not in NOT_CARRIED}
    widths: list[Overrides] = [{} for _ in range(config.num_hidden_layers)]
    for site, shape in shapes.items():
        widths[site.block] |= adapter.overrides(shape)
    base_type = config.model_type.removeprefix("lightstride_")
    layered_class = LAYERED[base_type][0]
    if all(width == widths[0] for width in widths):
        settings |= widths[0]
        plain = None
        if "expert_widths" not in settings:
            plain = plain_config(CONFIG_MAPPING[base_type], settings, head_dim)
        return plain or layered_class(**{**settings, "head_dim": head_dim})
    layered = layered_class(
        **{**settings, "head_dim": head_dim, "per_layer_config": dict(enumerate(widths))}
    )
    layered.serialize_explicit_per_layer_config = True
    return layered


def config_to_cut(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config that a model is opened with: its own, or a layered one if it has experts."""
    geometry = adapter_for(config).geometry(config)
    is_layered = config.model_type.startswith("lightstride_")
    if is_layered or not geometry.has_experts:
        return config
    return config_with_widths(config, {site: geometry.shape(site) for site in geometry.sites})


def plain_config(
    own: type[PreTrainedConfig], settings: Settings, head_dim: int
) -> PreTrainedConfig | None:
    """A config of transformers' own with these settings; None when none can express them."""
    if settings["hidden_size"] != settings["num_attention_heads"] * head_dim:
        if own is OPTConfig:  # it has no other head size than hidden size over heads
            return None
        settings = {**settings, "head_dim": head_dim}
    try:
        return own(**settings)
    except StrictDataclassClassValidationError:
        biased = settings.get("attention_bias") or settings.get("mlp_bias")
        if own is not LlamaConfig or biased:
            return None
    shared = {key: value for key, value in settings.items() if key not in LLAMA_ONLY}
    return MistralConfig(**shared, sliding_window=None)


def empty_with_widths(model: PreTrainedModel, shapes: Mapping[Site, Shape]) -> PreTrainedModel:
    """A model like this one of meta tensors, whose class and config have these widths."""
    register()
    config = config_with_widths(model.config, shapes)
    attention = model.config._attn_implementation
    with torch.device("meta"):
        new: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention
        )
    new.tie_weights()
    return new


def rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same tensors, whose class and config have the widths of its blocks."""
    new = empty_with_widths(model, block_shapes(model))
    new.load_state_dict(adapter_for(model.config).state(model), assign=True)
    new.tie_weights()
    parameters = dict(model.named_parameters())
    for name, parameter in new.named_parameters():
        if name in parameters:
            parameter.requires_grad_(parameters[name].requires_grad)
    for name, buffer in model.named_buffers():
        owner, _, own_name = name.rpartition(".")
        new.get_submodule(owner).register_buffer(own_name, buffer, persistent=False)
    new.generation_config = model.generation_config
    new.train(model.training)
    return new
