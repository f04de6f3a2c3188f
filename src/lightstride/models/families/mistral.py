"""Mistral: Llama's names, no biases, and optionally a sliding window."""

from typing import ClassVar

from transformers import PreTrainedConfig

from lightstride.models.families.llama import LlamaAdapter


class MistralAdapter(LlamaAdapter):
    """Mistral 7B and Nemo."""

    family: ClassVar[str] = "mistral"
    model_types: ClassVar[tuple[str, ...]] = ("mistral",)

    def biases(self, config: PreTrainedConfig) -> tuple[bool, bool, bool]:
        return False, False, False
