"""Uneven models in transformers' own lists."""

import copy
import subprocess
import sys

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
)

from lightstride.models.uneven.modeling import (
    LayeredLlamaConfig,
    LayeredLlamaForCausalLM,
)
from lightstride.models.uneven.register import register


def test_auto_classes_know_the_layered_models():
    register()
    config = LayeredLlamaConfig(
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=260,
        per_layer_config={0: {"intermediate_size": 24}},
    )
    assert type(AutoConfig.for_model("lightstride_llama")) is LayeredLlamaConfig
    assert type(AutoModelForCausalLM.from_config(config)) is LayeredLlamaForCausalLM
    assert LayeredLlamaForCausalLM(copy.deepcopy(config)).config._attn_implementation == "sdpa"
    assert type(AutoModel.from_config(config)).__name__ == "LayeredLlamaModel"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lightstride; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
