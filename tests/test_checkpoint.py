"""Saved folders: read back as they were, complete, usable without this package, or absent."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MistralForCausalLM,
)

from helpers.agree import assert_close_logits, assert_same_greedy, assert_same_weights
from helpers.cuts import VARIANTS, cut_all, cut_block, logits, tokens
from helpers.toys import TINY, WITH_EXPERTS, byte_tokenizer, tiny_llama, tiny_qwen2
from lightstride.checkpoint import (
    MODELING_NAME,
    RECORD_NAME,
    ancestors_of,
    open_decoder,
    read_record,
    save_checkpoint,
    write_record,
)
from lightstride.errors import ModelError, OutputError
from lightstride.generate import PlainDecoder
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.shapes import AttentionShape

STRANGER = """
import json, sys
sys.modules["lightstride"] = None  # any import of it fails
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    headless = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules"), config
    assert type(headless).__name__.endswith("Model"), headless
    tokens = torch.load(folder + "/tokens.pt", weights_only=True)
    expected = torch.load(folder + "/logits.pt", weights_only=True)
    with torch.no_grad():
        same = torch.allclose(model(tokens).logits, expected, atol=1e-5)
    print(type(model).__name__, same, tokenizer("hi")["input_ids"])
"""
FRIEND = """
import sys
FIRST
from transformers import AutoConfig, AutoModelForCausalLM
SECOND
for folder in sys.argv[1:]:
    print(type(AutoConfig.from_pretrained(folder)).__module__)
    print(type(AutoModelForCausalLM.from_pretrained(folder)).__module__)
"""


def run_python(code: str, folder: Path, *arguments: object) -> list[str]:
    """Lines that a fresh interpreter prints; remote code is copied under `folder`."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("variant", VARIANTS)
def test_uneven_model_is_read_back(variant, tmp_path):
    model = VARIANTS[variant]()
    cut_block(model, 1)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    read = load_model(str(tmp_path / "new"))
    assert type(read).__name__.startswith("Layered")
    assert_same_weights(read, model)
    assert_close_logits(logits(read), logits(model))
    again = tmp_path / "again"
    save_checkpoint(read, byte_tokenizer(), again)
    for name in ("config.json", "model.safetensors", MODELING_NAME):
        assert (again / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


@pytest.mark.parametrize("family", sorted(set(TINY) - set(WITH_EXPERTS)))
def test_even_model_needs_nothing_of_ours(family, tmp_path):
    model = TINY[family]()
    cut_all(model, ("ffn",))
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    assert not (tmp_path / "new" / MODELING_NAME).exists()
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert not {"auto_map", "per_layer_config"} & set(config)
    assert config["architectures"] == [type(model).__name__]
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert type(read) is type(model)
    assert_same_weights(read, model)
    assert_close_logits(logits(read), logits(model))


def test_llama_with_odd_heads_is_read_as_mistral(tmp_path):
    model = tiny_llama(num_kv_heads=4, queries_per_group=1)
    cut_all(model)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert type(read) is MistralForCausalLM
    assert_same_weights(read, model)
    assert_close_logits(logits(read), logits(model))
    text = "One; two, 3.\n\tVier"
    assert load_tokenizer(str(tmp_path / "new"))(text) == byte_tokenizer()(text)


def test_uneven_models_open_without_this_package(tmp_path):
    """In a process where it cannot be imported, with trust_remote_code."""
    for variant, build in VARIANTS.items():
        model = build()
        cut_block(model, 1)
        save_checkpoint(model, byte_tokenizer(), tmp_path / variant)
        torch.save(tokens(), tmp_path / variant / "tokens.pt")
        torch.save(logits(model), tmp_path / variant / "logits.pt")
    lines = run_python(STRANGER, tmp_path, *(tmp_path / variant for variant in VARIANTS))
    assert len(lines) == len(VARIANTS)
    for line in lines:
        name, same, ids = line.split(maxsplit=2)
        assert name.startswith("Layered")
        assert (same, ids) == ("True", "[104, 105]")


@pytest.mark.parametrize("first", [True, False], ids=["imported first", "imported last"])
def test_uneven_models_open_without_remote_code_beside_this_package(first, tmp_path):
    model = tiny_qwen2()
    cut_block(model, 1)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    order = ("import lightstride", "") if first else ("", "import lightstride")
    code = FRIEND.replace("FIRST", order[0]).replace("SECOND", order[1])
    assert (
        run_python(code, tmp_path, tmp_path / "new") == ["lightstride.models.uneven.modeling"] * 2
    )


def test_uneven_model_runs_no_remote_code_unasked(tmp_path):
    model = tiny_llama()
    cut_block(model, 1)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    (tmp_path / "new" / MODELING_NAME).write_text("raise RuntimeError('was run')")
    assert_same_weights(load_model(str(tmp_path / "new")), model)
    AutoConfig.from_pretrained(tmp_path / "new")


def test_everything_about_answering_is_saved(tmp_path):
    model = tiny_llama()
    model.generation_config = GenerationConfig(
        eos_token_id=[257, 10], temperature=0.5, do_sample=False
    )
    tokenizer = byte_tokenizer(add_bos=True)
    save_checkpoint(model, tokenizer, tmp_path / "new", record={"kind": "prune", "seed": 3})
    decoder = open_decoder(str(tmp_path / "new"), dtype=torch.bfloat16)
    assert isinstance(decoder, PlainDecoder)
    assert decoder.model.dtype == torch.bfloat16
    assert decoder.model.generation_config.eos_token_id == [257, 10]
    assert decoder.model.generation_config.temperature == 0.5
    assert decoder.tokenizer("hi")["input_ids"] == [256, 104, 105]
    assert decoder.tokenizer.chat_template == tokenizer.chat_template
    record = read_record(tmp_path / "new")
    assert (record["kind"], record["seed"], record["format"]) == ("prune", 3, 1)
    assert model.generation_config.temperature == 0.5


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = tiny_llama()
    cut_block(model, 0)
    config, before = model.config.to_dict(), logits(model)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), before)


def test_large_models_are_written_in_shards(tmp_path):
    model = tiny_llama(num_layers=4)
    cut_block(model, 2)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new", shard_bytes=50_000)
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 1
    assert_same_weights(load_model(str(tmp_path / "new")), model)


def test_a_folder_of_others_has_an_empty_record(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    assert read_record(tmp_path) == {}


def test_a_record_with_hashes_alone_is_read(tmp_path):
    """Smashed models of earlier versions have one."""
    write_record(tmp_path, {"kind": "smash", "data": {"self": "0123abcd"}, "ancestors": ["a"]})
    assert read_record(tmp_path)["data"] == {"self": "0123abcd"}
    assert ancestors_of(tmp_path) == ("a",)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_damaged_or_foreign_record_is_refused(text, tmp_path):
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(ModelError, match=RECORD_NAME):
        read_record(tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "new").mkdir()
    save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "new")
    load_model(str(tmp_path / "new"))


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "file" / "new")


def test_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*new: "):
            save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(Path(tmp_path).iterdir()) == []


def test_no_space_is_said_in_these_words(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightstride.checkpoint.write_record", full)
    with pytest.raises(OutputError, match=r"new: no space left on the disk$"):
        save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "new", record={})
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.slow
def test_smollm2_with_uneven_and_with_even_widths(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTSTRIDE_CACHE")
    tokenizer = load_tokenizer("smollm2-135m")
    text = "In 1969,  12 astronauts\n\n 3 of them"
    prompt = tokenizer(text, return_tensors="pt")
    for name in ("LayeredLlamaForCausalLM", "LlamaForCausalLM"):
        model = load_model("smollm2-135m")
        adapter = adapter_for(model.config)
        for block in adapter.blocks(model)[1::3] if "Layered" in name else adapter.blocks(model):
            weights = adapter.read(block, "attention")
            narrow = {"query": weights["query"][:256], "output": weights["output"][:, :256]}
            kv = {name: weights[name][:128] for name in ("key", "value")}
            adapter.write(block, "attention", narrow | kv, AttentionShape(2, 2))
        save_checkpoint(model, tokenizer, tmp_path / name)
        read = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert type(read).__name__ == name
        with torch.no_grad():
            logits = read(**prompt).logits
            torch.testing.assert_close(logits, model(**prompt).logits, atol=1e-3, rtol=1e-3)
        options = {"do_sample": False, "max_new_tokens": 6}
        plain = read.generate(**prompt, use_cache=False, **options)[0].tolist()
        for cache in ("dynamic", "static"):
            answer = read.generate(**prompt, cache_implementation=cache, **options)[0].tolist()
            assert_same_greedy(read, [], answer, plain, tie=1e-2)
        assert AutoTokenizer.from_pretrained(tmp_path / name)(text) == tokenizer(text)
