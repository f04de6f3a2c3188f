"""Weights after a type of llama.cpp's are those of the file, read again."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("xllamacpp")
from gguf import GGUFReader, quants

from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.toys import tiny_llama
from lightstride.export.gguf.round_trip import quantized_copy
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for


@pytest.mark.parametrize("dtype", ["q8_0", "q4_k_m"])
def test_it_is_what_a_file_would_hold(dtype: str, tmp_path: Path) -> None:
    model = tiny_llama(num_channels=256, vocab_size=260)
    found = quantized_copy(model, dtype)
    write_gguf(
        ModelWeights(model),
        model.config,
        adapter_for(model.config).geometry(model.config),
        ascii_tokenizer(),
        tmp_path / "toy.gguf",
        dtype=dtype,
        name="toy",
    )
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "toy.gguf").tensors}
    weights = found.state_dict()
    for name, theirs in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        tensor = tensors[theirs]
        expected = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(weights[name], expected.view(weights[name].shape))
    changed = weights["model.layers.1.mlp.down_proj.weight"]
    assert not torch.equal(changed, model.state_dict()["model.layers.1.mlp.down_proj.weight"])
