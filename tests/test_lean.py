"""A server imports less, and what it left out can be had afterwards."""

import subprocess
import sys

PROGRAM = """
import sys
import lightstride.commands.serve
from lightstride import lean
import torch
from transformers import LlamaConfig, LlamaForCausalLM
assert torch.distributed.is_available()
with lean.without_compiler(), torch.device("meta"):
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))(torch.zeros(1, 2, dtype=torch.long))
left_out = {"scipy", "torch._dynamo", "torch.distributed.tensor"}
assert not left_out & sys.modules.keys(), left_out & sys.modules.keys()
compiled = torch.compile(lambda values: values + 1, backend="eager")
assert compiled(torch.ones(1)).item() == 2
from torch.distributed.tensor import DTensor
assert torch._dynamo.allow_in_graph is not lean.unmarked
with lean.without_compiler():
    assert torch._dynamo.allow_in_graph is not lean.unmarked
"""


def test_what_is_left_out_and_had_afterwards() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
