"""Tells vLLM about layered checkpoints, so that it serves them without `--trust-remote-code`.

vLLM calls `register` in each of its processes when this package is installed beside it, by the
entry point `vllm.general_plugins`.  The models run in its Transformers backend, as they do from
the checkpoint's own modeling file.
"""

from vllm import ModelRegistry

from lightstride.models.uneven.register import LAYERED
from lightstride.models.uneven.register import register as register_classes

BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"


def register() -> None:
    """Enter the layered models into transformers' Auto classes and into vLLM's registry."""
    register_classes()
    for _, _, causal_class in LAYERED.values():
        ModelRegistry.register_model(causal_class.__name__, BACKEND)
