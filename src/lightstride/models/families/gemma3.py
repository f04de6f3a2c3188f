"""Gemma 3, the text model: Llama's names.

Norms on q and k, two more norms a block, sliding layers and the scaled embedding are all outside
the sites: they stay as they are.
"""

from typing import ClassVar

from lightstride.models.families.llama import LlamaAdapter


class Gemma3Adapter(LlamaAdapter):
    """Gemma 3 without its eyes."""

    family: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)
