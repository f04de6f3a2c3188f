"""Models for other engines.

gguf/    llama.cpp    decilm   vLLM's native uneven layers (modeling_decilm)
vllm_plugin   registers our models where vLLM looks for plugins
"""
