"""Which adapter answers for which model."""

from transformers import PreTrainedConfig

from lightstride.errors import UnknownFamilyError
from lightstride.models.adapter import Adapter
from lightstride.models.llama import LlamaAdapter

ADAPTERS: tuple[Adapter, ...] = (LlamaAdapter(),)


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter of a model with this config; raises UnknownFamilyError naming those there are."""
    model_type = config.model_type.removeprefix("lightstride_")
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(sorted(t for adapter in ADAPTERS for t in adapter.model_types))
    raise UnknownFamilyError(f"model type {model_type!r} is not supported; supported: {known}")
