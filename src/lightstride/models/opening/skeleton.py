"""Models without their weights: all of meta tensors, or one block of random ones to time.

Both come from config.json alone; no file of weights is opened.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import layers_own
from lightstride.models.opening.load import load_config, locate

FEW_TOKENS = 256
"""Vocabulary of a model that is only timed."""


def load_skeleton(
    source: str, *, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model whose weights have shapes and a type, but no values and no memory.

    Raises ModelError and UnknownFamilyError as `load_model` does for what config.json says.
    """
    config = load_config(source, locate(source), trust_remote_code=trust_remote_code)
    adapter_for(config)
    with errors_explained(source, "config"):
        return skeleton(config, dtype, trust_remote_code=trust_remote_code)


def skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of this config, of meta tensors."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
        )
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def check_shapes(
    source: str, config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ModelError where stored weights have other shapes than a model of this config."""
    with errors_explained(source, "config"):
        wanted = skeleton(config, torch.float32).state_dict()
    for name, tensor in wanted.items():
        if name in shapes and shapes[name] != tuple(tensor.shape):
            raise ModelError(
                f"{source} has {name} of shape {list(shapes[name])}; its config.json asks for "
                f"{list(tensor.shape)}"
            )


def one_block(
    config: PreTrainedConfig, dtype: torch.dtype, device: str, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The first block of such a model with random weights, between a small embedding and head."""
    short = first_block(config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            short, dtype=dtype, trust_remote_code=trust_remote_code
        )
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def first_block(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model that has the first block alone, and a small vocabulary."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    values = {**config.to_dict(), **tokens, "num_hidden_layers": 1}
    values["vocab_size"] = min(config.vocab_size, FEW_TOKENS)
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:1]
    if values.get("per_layer_config"):
        values["per_layer_config"] = {0: layers_own(values).get(0, {})}
    return type(config).from_dict(values)
