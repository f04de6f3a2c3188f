"""Granite 3, dense: Llama's names and biases.

Its four multipliers (of embeddings, of what a site adds, of attention scores, of logits) are all
outside the sites: they stay as they are.
"""

from typing import ClassVar

from lightstride.models.families.llama import LlamaAdapter


class GraniteAdapter(LlamaAdapter):
    """Granite 3.x without experts."""

    family: ClassVar[str] = "granite"
    model_types: ClassVar[tuple[str, ...]] = ("granite",)
