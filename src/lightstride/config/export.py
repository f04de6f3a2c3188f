"""Flags of `lightstride export`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import Command, Model, require

GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Command):
    """Write a model in the format of another engine."""

    example: ClassVar[str] = "lightstride export smollm2-pruned -o smollm2-pruned.gguf --to gguf"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    output: Annotated[str, arg(aliases=("-o",), metavar="FILE")]
    """The file or folder to write; must not exist."""
    to: Literal["gguf", "decilm", "sliding", "eagle3", "speculators"] = "gguf"
    """The format: gguf (llama.cpp, Ollama) or decilm (a folder for engines that know DeciLM); of a
    model with a memory plan by block sliding (its base, with sliding windows by layer, which
    transformers and vLLM keep); of a model with a draft head its head, as eagle3 (SGLang, vLLM),
    speculators (vllm serve FOLDER starts base and head) or gguf (llama.cpp)."""
    kv: Annotated[
        float | None,
        arg(metavar="S", help_behavior_hint="(default: the model's own)"),
    ] = None
    """Which memory plan --to sliding writes, by its budget."""
    dtype: GGUFType = "bf16"
    """How a GGUF stores the weights."""
    trust_remote_code: bool = False
    """Allow Python files that come with the model to run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kv is None or 0 < self.kv <= 1, "--kv", self.kv, "above 0 and at most 1")
        alone = self.kv is None or self.to == "sliding"
        require(alone, "--kv", self.kv, "left out without --to sliding")
