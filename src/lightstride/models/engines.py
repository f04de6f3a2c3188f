"""Which families other engines run, and at which widths: the one table of it.

`prune --target` narrows its choices by it, and `export` refuses by it, so that whatever is pruned
for an engine can be exported to it.  A family that is not listed runs in transformers and vLLM
alone.  Torch-free.

llama.cpp builds a model from the name of an architecture.  Most families have one of their own,
which takes one width for all blocks.  Two take a width for every block: `deci` (Llama's
mathematics, biases allowed) and `openelm` (norms on queries and keys, head tied to the embedding).
How each computes is in `export/gguf/architecture.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lightstride.models.shapes import Geometry


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """The llama.cpp architectures of one family."""

    same_widths: str
    """Runs the family with the same widths in every block."""
    own_widths: str | None = None
    """Runs it with widths of its own in every block; None where nothing does."""
    all_heads: bool = False
    """The first takes queries as wide as the hidden size alone: no head may be cut."""
    own_widths_tied: bool = False
    """The second needs the head tied to the embedding."""

    def runs_own_widths(self, geometry: Geometry) -> bool:
        """Whether llama.cpp runs this model once its blocks differ in width."""
        return self.own_widths is not None and (geometry.tied_head or not self.own_widths_tied)


LLAMA_CPP: Mapping[str, LlamaCpp] = MappingProxyType(
    {
        "llama": LlamaCpp(same_widths="llama", own_widths="deci"),
        "mistral": LlamaCpp(same_widths="llama", own_widths="deci"),
        "qwen2": LlamaCpp(same_widths="qwen2", all_heads=True, own_widths="deci"),
        "qwen3": LlamaCpp(same_widths="qwen3", own_widths="openelm", own_widths_tied=True),
        "gemma3": LlamaCpp(same_widths="gemma3"),
        "granite": LlamaCpp(same_widths="granite"),
        "olmo2": LlamaCpp(same_widths="olmo2", all_heads=True),
        "phi3": LlamaCpp(same_widths="phi3", all_heads=True),
    }
)
"""Our name of a family to what llama.cpp runs of it."""

DECILM = ("llama", "mistral", "qwen2")
"""Families whose mathematics is DeciLM's (NVIDIA's Nemotron-NAS): Llama's, biases allowed."""
