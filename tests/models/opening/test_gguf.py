"""GGUF files: read as the models that they were written from, converted once, or refused."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers.agree import assert_close_logits
from helpers.cuts import cut_block, logits
from helpers.processes import run_ranks
from helpers.toys import (
    tiny_gemma3,
    tiny_llama,
    tiny_mistral,
    tiny_qwen2,
    tiny_qwen3,
)
from helpers.trained_tokenizer import trained_tokenizer
from lightstride import distributed
from lightstride.errors import ModelError, UnknownFamilyError
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening import builtin, gguf, load
from lightstride.models.opening.builtin import BuiltIn, gguf_source
from lightstride.models.opening.load import load_model, load_tokenizer


def write(
    model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    geometry = adapter_for(model.config).geometry(model.config)
    words = tokenizer or trained_tokenizer()
    write_gguf(ModelWeights(model), model.config, geometry, words, path, dtype="f32", name="toy")
    return path


def llama3() -> PreTrainedModel:
    """A toy whose positions are stretched as Llama 3's are."""
    config = tiny_llama().config
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return type(tiny_llama())(config).eval()


@pytest.mark.parametrize(
    "build",
    [
        tiny_llama,
        lambda: tiny_llama(tied=False, head_dim=16),
        llama3,
        lambda: tiny_mistral(sliding_window=None),
        tiny_qwen2,
        tiny_qwen3,
        tiny_gemma3,
    ],
    ids=["llama", "llama untied", "llama3", "mistral", "qwen2", "qwen3", "gemma3"],
)
def test_gguf_file_is_the_model_it_was_written_from(build, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    model = build()
    path = write(model, tmp_path / "toy.gguf")
    read = load_model(str(path))
    torch.testing.assert_close(logits(read), logits(model), atol=1e-5, rtol=0)
    assert not hasattr(read.config, "quantization_config")
    tokenizer, original = load_tokenizer(str(path)), trained_tokenizer()
    if read.config.model_type != "gemma3_text":  # whose tokenizer is of another kind in real files
        text = "The model cannot be read\n\tor is not what it says"
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == original.chat_template
    ends = original.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
    assert read.generation_config.eos_token_id == ends
    read.save_pretrained(tmp_path / "saved")


def test_digits_in_a_gguf_file_stay_words(tmp_path, monkeypatch):
    """SmolLM's tokenizer is one of these."""
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    original = trained_tokenizer(digits=True)
    read = load_tokenizer(str(write(tiny_llama(), tmp_path / "toy.gguf", original)))
    text = "one  12\n\n 3"
    assert read(text)["input_ids"] == original(text)["input_ids"]
    assert read(text)["input_ids"] != trained_tokenizer()(text)["input_ids"]
    monkeypatch.setattr(gguf, "SPLIT_DIGITS", ())
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"splits text in a way \('smollm'\) that cannot be read"):
        load_tokenizer(str(tmp_path / "toy.gguf"))


def test_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    path = write(tiny_llama(), tmp_path / "toy.gguf")
    first = logits(load_model(str(path)))
    (converted,) = (tmp_path / "cache" / "converted").iterdir()
    stamp = (converted / "config.json").stat().st_mtime_ns
    assert_close_logits(logits(load_model(str(path))), first)
    assert (converted / "config.json").stat().st_mtime_ns == stamp
    write(tiny_llama(seed=1), path)
    assert (logits(load_model(str(path))) - first).abs().max() > 1e-2


def test_gguf_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    path = write(tiny_llama(), tmp_path / "toy.gguf")
    for end in (4, 1000, path.stat().st_size - 100):
        cut = tmp_path / f"cut{end}.gguf"
        shutil.copyfile(path, cut)
        cut.write_bytes(cut.read_bytes()[:end])
        with pytest.raises(ModelError, match="truncated, or not") as error:
            load_model(str(cut))
        assert "\n" not in str(error.value)
    (tmp_path / "text.gguf").write_text("no model at all " * 100)
    with pytest.raises(ModelError, match="truncated, or not"):
        load_model(str(tmp_path / "text.gguf"))
    with pytest.raises(ModelError, match="other tensors than transformers reads"):
        load_model(str(write(tiny_llama(bias=True), tmp_path / "bias.gguf")))
    uneven = tiny_llama()
    cut_block(uneven, 1)
    uneven.config.per_layer_config = {
        1: {"intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    }
    with pytest.raises(UnknownFamilyError, match="'deci' is not supported; supported: gemma3, l"):
        load_model(str(write(uneven, tmp_path / "deci.gguf")))
    assert not list((tmp_path / "cache").glob("*/*"))


@pytest.mark.parametrize("sound", [True, False])
def test_built_in_model_in_pieces_is_put_together(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    whole = write(tiny_llama(), tmp_path / "whole.gguf").read_bytes()
    for part, data in ((1, whole[:2000]), (2, whole[2000:])):
        (tmp_path / f"toy_part{part}").mkdir()
        (tmp_path / f"toy_part{part}" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / f"toy_part{part}" / "piece").write_bytes(data)
    toy = BuiltIn(
        parts=(("toy_part1", "piece"), ("toy_part2", "piece")),
        install="pip install toy",
        sha256=hashlib.sha256(whole if sound else b"other").hexdigest(),
    )
    for module in (builtin, load):
        monkeypatch.setattr(module, "BUILT_IN", {"toy": toy})
    if sound:
        assert gguf_source("toy").num_bytes == len(whole)
        assert_close_logits(logits(load_model("toy")), logits(tiny_llama()))
        assert not list(tmp_path.glob("cache/*/*/*.gguf"))
    else:
        with pytest.raises(ModelError, match="damaged; install them again"):
            load_model("toy")
        assert not list(tmp_path.glob("cache/*/*"))


def convert_in_own_cache(folder: Path) -> None:
    """What every rank does: convert into a cache that no other rank has."""
    distributed.init()
    os.environ["LIGHTSTRIDE_CACHE"] = str(folder / str(distributed.rank()))
    assert load_model(str(folder / "toy.gguf")).config.architectures == ["LlamaForCausalLM"]
    distributed.close()


def test_every_rank_converts_for_itself(tmp_path: Path) -> None:
    """transformers writes models on rank 0 alone."""
    write(tiny_llama(), tmp_path / "toy.gguf")
    run_ranks(convert_in_own_cache, 2, tmp_path)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / rank).glob("converted/*/*")}
        for rank in ("0", "1")
    )
    for files in (first, second):
        files.pop("conversion.json")  # it has the time that it took
    assert first == second
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(first)
