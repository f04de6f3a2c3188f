"""What llama.cpp computes from our GGUF is what transformers computes from the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("xllamacpp")
from gguf import GGMLQuantizationType, GGUFReader, quants

from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.engine import Engine
from helpers.toys import TINY, tiny_llama
from lightstride.config.export import GGUFType
from lightstride.export.gguf.quantize import FILE_TYPES, MATRIX_TYPES, pack_with_engine
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import GGUFFile, write_gguf
from lightstride.models.engines import LLAMA_CPP
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionKept, FFNKept, Kept, Site
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite, kept_inputs

VOCAB_SIZE = 260


def cut(model: PreTrainedModel, kept: dict[Site, Kept]) -> PreTrainedModel:
    """The model with only these units, its weights otherwise unchanged."""
    adapter = adapter_for(model.config)
    dense = DenseSites.of(model, adapter)
    levels = {}
    for site, units in kept.items():
        columns = kept_inputs(units, dense.geometry.shape(site), dense.geometry.head_dim)
        weight = dense.weights[site][OUTPUT_NAME[site.kind]][:, columns]
        levels[site] = CutSite(units, weight, 0.0)
    return materialize(model, adapter, levels)


def uneven(model: PreTrainedModel) -> PreTrainedModel:
    """Another number of KV groups, of queries in a group, and of channels in each of two blocks."""
    return cut(
        model,
        {
            Site(0, "attention"): AttentionKept((1,), ((0, 1),)),
            Site(0, "ffn"): FFNKept(tuple(range(0, 48, 3))),
            Site(1, "attention"): AttentionKept((0, 1), ((1,), (0,))),
            Site(1, "ffn"): FFNKept(tuple(range(5, 38))),
        },
    )


def even(model: PreTrainedModel) -> PreTrainedModel:
    """Every block cut to the same widths."""
    kept: dict[Site, Kept] = {}
    for block in range(model.config.num_hidden_layers):
        if not LLAMA_CPP[adapter_for(model.config).family].all_heads:
            kept[Site(block, "attention")] = AttentionKept((0, 1), ((0,), (1,)))
        kept[Site(block, "ffn")] = FFNKept(tuple(range(block, block + 32)))
    return cut(model, kept)


def written(model: PreTrainedModel, folder: Path, dtype: str = "f32") -> GGUFFile:
    """The model as a GGUF."""
    folder.mkdir(exist_ok=True)
    return write_gguf(
        ModelWeights(model),
        model.config,
        adapter_for(model.config).geometry(model.config),
        ascii_tokenizer(),
        folder / "model.gguf",
        dtype=dtype,
        name="toy",
    )


def reference(model: PreTrainedModel, prompt: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)


def worst_difference(model: PreTrainedModel, path: Path, hesitation: float = 0.0) -> float:
    """Greatest difference of log-probabilities along greedy answers of six tokens.

    The tokens must be the same; where the model prefers its token by less than `hesitation`, the
    engine may take another.
    """
    engine = Engine(path)
    worst = 0.0
    for start in (10, 60):
        prompt = list(range(start, start + 24))
        for _ in range(6):
            expected = reference(model, prompt)
            found = torch.tensor(engine.log_probabilities(prompt, VOCAB_SIZE))
            assert expected.max() - expected[found.argmax()] <= hesitation
            worst = max(worst, (found - expected).abs().max().item())
            prompt.append(int(expected.argmax()))
    return worst


MODELS = {
    "llama": {},
    "llama untied": {"tied": False},
    "llama biased": {"bias": True},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen2 untied": {"tied": False},
    "qwen3": {},
    "gemma3": {},
    "granite": {},
    "granite untied": {"tied": False},
    "olmo2": {},
    "phi3": {},
}
UNEVEN = ["llama", "llama untied", "llama biased", "mistral", "qwen2", "qwen2 untied", "qwen3"]


def toy(name: str) -> PreTrainedModel:
    return TINY[name.split()[0]](**MODELS[name])


@pytest.mark.parametrize("cutting", [None, even], ids=["dense", "even"])
@pytest.mark.parametrize("name", MODELS)
def test_even_models_agree(name: str, cutting, tmp_path: Path) -> None:
    model = toy(name) if cutting is None else cutting(toy(name))
    assert worst_difference(model, written(model, tmp_path).path) < 0.05


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_models_agree(name: str, tmp_path: Path) -> None:
    model = uneven(toy(name))
    assert worst_difference(model, written(model, tmp_path).path) < 0.05


@pytest.mark.parametrize("name", ["llama", "llama biased", "mistral", "qwen2"])
def test_blocks_without_attention_agree(name: str, tmp_path: Path) -> None:
    family = TINY[name.split()[0]]
    nothing = AttentionKept((), ())
    narrow = FFNKept(tuple(range(32)))
    model = cut(
        family(num_layers=4, **MODELS[name]),
        {Site(1, "attention"): nothing, Site(2, "ffn"): narrow, Site(3, "attention"): nothing},
    )
    file = written(model, tmp_path)
    assert file.architecture == "deci"
    assert worst_difference(model, file.path) < 0.05


def rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its matrices in a type's precision; vectors stay as they are in a GGUF."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.to(dtype))
    return model


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_agrees(dtype: str, tmp_path: Path) -> None:
    model = uneven(TINY["llama"]())
    path = written(model, tmp_path, dtype).path
    exact = rounded(model, {"f16": torch.float16, "bf16": torch.bfloat16}[dtype])
    assert worst_difference(exact, path) < 0.05


def quiet(model: PreTrainedModel, factor: float = 0.3) -> PreTrainedModel:
    """The model with smaller weights in its blocks: a toy's logits spread too far."""
    with torch.no_grad():
        for parameter in adapter_for(model.config).blocks(model).parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model


@pytest.mark.parametrize("cutting", [None, uneven], ids=["dense", "uneven"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_eight_bits_agree(name: str, cutting, tmp_path: Path) -> None:
    model = quiet(TINY[name](hidden_size=64, num_channels=64))
    model = model if cutting is None else cutting(model)
    difference = worst_difference(model, written(model, tmp_path, "q8_0").path, hesitation=0.1)
    assert 0.01 < difference < 0.2


@pytest.mark.parametrize("dtype", ["q4_0", "q4_k_m"])
def test_four_bits_are_the_engines_own(dtype: str, tmp_path: Path) -> None:
    model = quiet(tiny_llama(num_layers=4, hidden_size=256, num_channels=512, head_dim=64), 0.1)
    model = cut(model, {Site(1, "ffn"): FFNKept(tuple(range(256)))})
    file = written(model, tmp_path / "packed", dtype)
    assert file.fallbacks == ()
    reader = GGUFReader(file.path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds["blk.0.attn_q.weight"] == MATRIX_TYPES[dtype].name
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert (kinds["blk.3.ffn_down.weight"] == "Q6_K") == (dtype == "q4_k_m")
    exact = {t.name: t.data for t in GGUFReader(written(model, tmp_path).path).tensors}
    for tensor in reader.tensors:
        packed = quants.dequantize(tensor.data, tensor.tensor_type)
        error = np.linalg.norm(packed - exact[tensor.name]) / np.linalg.norm(exact[tensor.name])
        assert (error == 0) if packed.ndim == 1 else (0.001 < error < 0.15)
    assert worst_difference(model, file.path, hesitation=0.5) < 1


def test_numpy_and_engine_pack_alike() -> None:
    matrix = torch.randn(7, 256)
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        plain = quants.quantize(matrix.numpy(), kind)
        assert (pack_with_engine(matrix.numpy(), kind) == plain.reshape(-1)).all()


def test_rows_that_do_not_divide_fall_back_and_are_named(tmp_path: Path) -> None:
    file = written(uneven(tiny_llama()), tmp_path, "q8_0")
    assert "blk.1.ffn_down.weight: f16" in file.fallbacks
    assert not any("ffn_up" in name for name in file.fallbacks)


def test_every_type_of_the_command_line_is_written() -> None:
    assert set(get_args(GGUFType)) == set(MATRIX_TYPES) == set(FILE_TYPES)
