"""Makes transformers' Auto classes know the layered models, so that no remote code is needed.

`import lightstride` arranges that `register` runs before a config is read (`announce.py`).
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from lightstride.models.uneven import experts
from lightstride.models.uneven import modeling as layered

LayeredClasses = tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]

LAYERED: Mapping[str, LayeredClasses] = MappingProxyType(
    {
        "gemma3_text": (
            layered.LayeredGemma3TextConfig,
            layered.LayeredGemma3TextModel,
            layered.LayeredGemma3ForCausalLM,
        ),
        "granite": (
            layered.LayeredGraniteConfig,
            layered.LayeredGraniteModel,
            layered.LayeredGraniteForCausalLM,
        ),
        "llama": (
            layered.LayeredLlamaConfig,
            layered.LayeredLlamaModel,
            layered.LayeredLlamaForCausalLM,
        ),
        "mistral": (
            layered.LayeredMistralConfig,
            layered.LayeredMistralModel,
            layered.LayeredMistralForCausalLM,
        ),
        "olmo2": (
            layered.LayeredOlmo2Config,
            layered.LayeredOlmo2Model,
            layered.LayeredOlmo2ForCausalLM,
        ),
        "opt": (layered.LayeredOPTConfig, layered.LayeredOPTModel, layered.LayeredOPTForCausalLM),
        "phi3": (
            layered.LayeredPhi3Config,
            layered.LayeredPhi3Model,
            layered.LayeredPhi3ForCausalLM,
        ),
        "qwen2": (
            layered.LayeredQwen2Config,
            layered.LayeredQwen2Model,
            layered.LayeredQwen2ForCausalLM,
        ),
        "qwen3": (
            layered.LayeredQwen3Config,
            layered.LayeredQwen3Model,
            layered.LayeredQwen3ForCausalLM,
        ),
        "qwen3_moe": (
            experts.LayeredQwen3MoeConfig,
            experts.LayeredQwen3MoeModel,
            experts.LayeredQwen3MoeForCausalLM,
        ),
    }
)
"""The layered config, headless model and causal model of every base `model_type`."""


@functools.cache
def register() -> None:
    """Enter all layered models into AutoConfig, AutoModel and AutoModelForCausalLM."""
    for config_class, model_class, causal_class in LAYERED.values():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, causal_class, exist_ok=True)
