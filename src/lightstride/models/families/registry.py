"""Which adapter answers for which model."""

from transformers import PreTrainedConfig

from lightstride.errors import UnknownFamilyError
from lightstride.models.families.adapter import Adapter
from lightstride.models.families.gemma3 import Gemma3Adapter
from lightstride.models.families.granite import GraniteAdapter
from lightstride.models.families.llama import LlamaAdapter
from lightstride.models.families.mistral import MistralAdapter
from lightstride.models.families.olmo2 import Olmo2Adapter
from lightstride.models.families.opt import OPTAdapter
from lightstride.models.families.phi3 import Phi3Adapter
from lightstride.models.families.qwen2 import Qwen2Adapter
from lightstride.models.families.qwen3 import Qwen3Adapter
from lightstride.models.families.qwen3_moe import Qwen3MoeAdapter

ADAPTERS: tuple[Adapter, ...] = (
    Gemma3Adapter(),
    GraniteAdapter(),
    LlamaAdapter(),
    MistralAdapter(),
    Olmo2Adapter(),
    OPTAdapter(),
    Phi3Adapter(),
    Qwen2Adapter(),
    Qwen3Adapter(),
    Qwen3MoeAdapter(),
)


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter of a model with this config; raises UnknownFamilyError naming those there are."""
    model_type = config.model_type.removeprefix("lightstride_")
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(sorted(t for adapter in ADAPTERS for t in adapter.model_types))
    raise UnknownFamilyError(f"model type {model_type!r} is not supported; supported: {known}")
