"""Qwen3: Llama's names.

The norms on q and k are one weight per element of a head, shared by all heads: no cut touches
them, and they are not counted among a site's parameters.
"""

from typing import ClassVar

from lightstride.models.families.llama import LlamaAdapter


class Qwen3Adapter(LlamaAdapter):
    """Qwen3, dense."""

    family: ClassVar[str] = "qwen3"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
