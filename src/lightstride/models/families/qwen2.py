"""Qwen2 and Qwen2.5: Llama's names, biases on q, k and v always and nowhere else."""

from typing import ClassVar

from transformers import PreTrainedConfig

from lightstride.models.families.llama import LlamaAdapter


class Qwen2Adapter(LlamaAdapter):
    """Qwen2 and Qwen2.5, dense."""

    family: ClassVar[str] = "qwen2"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)

    def biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return True, False, False
