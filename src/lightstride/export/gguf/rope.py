"""Rotary position settings of a model, as llama.cpp's keys and tables.

Paper: RoFormer (https://arxiv.org/abs/2104.09864); YaRN (https://arxiv.org/abs/2309.00071).
Llama 3 and long-context Phi-3 scale each frequency by a factor of its own: these travel as small
tensors, one number for each pair of dimensions.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from lightstride.errors import ExportError

Value = int | float | bool | str | list[int] | list[float] | list[str]
Metadata = dict[str, Value]
Tables = dict[str, tuple[float, ...]]

FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"


def rope_metadata(config: PreTrainedConfig, head_dim: int) -> tuple[Metadata, Tables]:
    """Keys and tables; raises ExportError for a scaling that llama.cpp does not compute."""
    parameters: Mapping[str, Any] = config.rope_parameters
    local: Mapping[str, Any] | None = None
    if "full_attention" in parameters:
        local, parameters = parameters.get("sliding_attention"), parameters["full_attention"]
    rotated = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    keys: Metadata = {
        "rope.dimension_count": rotated,
        "rope.freq_base": float(parameters["rope_theta"]),
    }
    if local is not None:
        if local.get("rope_type", "default") != "default":
            raise ExportError("llama.cpp does not scale the positions of sliding attention")
        keys["rope.freq_base_swa"] = float(local["rope_theta"])
    scaling, tables = scaling_metadata(parameters, config, rotated)
    return {**keys, **scaling}, tables


def scaling_metadata(
    parameters: Mapping[str, Any], config: PreTrainedConfig, rotated: int
) -> tuple[Metadata, Tables]:
    """Keys and tables of one kind of scaling."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return {}, {}
    if kind == "llama3":
        return {}, {FACTORS: llama3_factors(parameters, rotated)}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": parameters["factor"]}, {}
    if kind == "yarn" and not set(parameters) - YARN_PARAMETERS:
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(parameters["factor"]),
            "rope.scaling.original_context_length": parameters["original_max_position_embeddings"],
        }, {}
    if kind == "longrope":
        return long_metadata(parameters, config)
    raise ExportError(
        f"llama.cpp cannot scale positions as {dict(parameters)} says; "
        "it can: default, linear, llama3, yarn with a factor, longrope"
    )


YARN_PARAMETERS = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}


def long_metadata(
    parameters: Mapping[str, Any], config: PreTrainedConfig
) -> tuple[Metadata, Tables]:
    """Keys and tables of LongRoPE (Phi-3 with 128k context)."""
    longest = config.max_position_embeddings
    original = (
        parameters.get("original_max_position_embeddings")
        or config.original_max_position_embeddings
    )
    scale = longest / original
    attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    keys: Metadata = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": parameters.get("attention_factor") or attention,
    }
    return keys, {
        LONG_FACTORS: tuple(map(float, parameters["long_factor"])),
        SHORT_FACTORS: tuple(map(float, parameters["short_factor"])),
    }


def llama3_factors(parameters: Mapping[str, Any], rotated: int) -> tuple[float, ...]:
    """By what each frequency is divided: 1 for short wavelengths, `factor` for long ones."""
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factor = parameters["factor"]

    def divisor(index: int) -> float:
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (2 * index / rotated)
        if wavelength < original / high:
            return 1.0
        if wavelength > original / low:
            return float(factor)
        smooth = (original / wavelength - low) / (high - low)
        return float(1 / ((1 - smooth) / factor + smooth))

    return tuple(divisor(index) for index in range(rotated // 2))
