"""One file a family; `registry.adapter_for(config)` finds the one that fits.

adapter    the questions that a family answers
llama    the answers of Llama, and of the families that differ little from it
"""
