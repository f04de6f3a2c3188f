"""A DeciLM folder is the same model in other words, and what those cannot say is refused."""

import importlib
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from helpers.agree import assert_close_logits, assert_same_greedy
from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.toys import TINY, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.cli import main
from lightstride.errors import ExportError, OutputError
from lightstride.export.decilm import check_decilm, decilm_config, ffn_mult, write_decilm
from lightstride.export.modeling_decilm import DeciLMConfig, DeciLMForCausalLM, ffn_width
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionShape, FFNKept, FFNShape, Site
from lightstride.models.uneven.register import LAYERED
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite

TOKENS = torch.arange(40, 60)[None]


def narrowed(model: PreTrainedModel) -> PreTrainedModel:
    """The second block's FFN at half its width."""
    adapter = adapter_for(model.config)
    dense = DenseSites.of(model, adapter)
    weight = dense.weights[Site(1, "ffn")][OUTPUT_NAME["ffn"]][:, :256]
    return materialize(
        model, adapter, {Site(1, "ffn"): CutSite(FFNKept(tuple(range(256))), weight, 0.0)}
    )


def saved(model: PreTrainedModel, folder: Path) -> Path:
    save_checkpoint(model, ascii_tokenizer(), folder / "model", record={"made": "here"})
    return folder / "model"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"num_channels": 512}),
        ("llama", {"num_channels": 512, "bias": True, "tied": False}),
        ("mistral", {"num_channels": 512, "sliding_window": 64}),
        ("qwen2", {"num_channels": 512}),
    ],
)
def test_the_folder_is_the_same_model(family: str, settings: dict, tmp_path: Path) -> None:
    model = narrowed(TINY[family](**settings))
    folder, output = saved(model, tmp_path), tmp_path / "decilm"
    assert main(["export", str(folder), "-o", str(output), "--to", "decilm"]) == 0
    again = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    assert type(again).__name__ == "DeciLMForCausalLM"
    assert again.config.model_type == "nemotron-nas"
    with torch.no_grad():
        assert_close_logits(again(TOKENS).logits, model(TOKENS).logits)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 258}
    expected = model.generate(TOKENS, **options).tolist()
    for row, answer in enumerate(again.generate(TOKENS, **options).tolist()):
        assert_same_greedy(model, [], answer, expected[row])
    assert (
        AutoTokenizer.from_pretrained(output)("It is")["input_ids"]
        == (ascii_tokenizer()("It is")["input_ids"])
    )
    assert not (output / "lightstride.json").exists()
    assert not (output / "modeling_lightstride.py").exists()


def test_the_folder_opens_without_this_package(tmp_path: Path) -> None:
    folder, output = saved(narrowed(tiny_llama(num_channels=512)), tmp_path), tmp_path / "decilm"
    assert main(["export", str(folder), "-o", str(output), "--to", "decilm"]) == 0
    script = (
        "import sys; sys.modules['lightstride'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(output)!r}, trust_remote_code=True)\n"
        "print([layer.mlp.up_proj.out_features for layer in model.model.layers])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.strip().endswith("[512, 256]")


def test_saved_again_it_is_the_same(tmp_path: Path) -> None:
    model = narrowed(tiny_llama(num_channels=512))
    config = model.config
    document = decilm_config(config, adapter_for(config).geometry(config))
    again = DeciLMForCausalLM(DeciLMConfig(**document))
    again.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["block_configs"]
        == (document["block_configs"])
    )
    assert DeciLMForCausalLM.from_pretrained(tmp_path).model.layers[1].mlp.up_proj.weight.shape == (
        256,
        32,
    )


def test_engines_read_blocks_as_objects() -> None:
    config = tiny_llama(num_channels=512).config
    geometry = adapter_for(config).geometry(config)
    blocks = DeciLMConfig(**decilm_config(config, geometry)).block_configs
    assert [block.attention.n_heads_in_group for block in blocks] == [2, 2]
    assert not any(block.attention.no_op or block.ffn.no_op for block in blocks)


def test_multipliers_come_back_as_widths() -> None:
    for hidden_size in (32, 576, 2048, 3584, 4096, 5120, 8192):
        for width in range(256, 4 * hidden_size + 256, 256):
            assert ffn_width(ffn_mult(width, hidden_size), hidden_size) == width


def test_what_decilm_cannot_say_is_refused(tmp_path: Path) -> None:
    config = tiny_llama(num_channels=512).config
    geometry = adapter_for(config).geometry(config)
    check_decilm(geometry)
    with pytest.raises(ExportError, match="block 1 has 300 FFN channels"):
        check_decilm(replace(geometry, ffn=(FFNShape(256), FFNShape(300))))
    shapes = (AttentionShape(2, 2), AttentionShape(1, 2))
    with pytest.raises(ExportError, match="same heads in every block"):
        check_decilm(replace(geometry, attention=shapes))
    qwen3 = TINY["qwen3"](num_channels=512).config
    with pytest.raises(ExportError, match="llama, mistral, qwen2, not qwen3"):
        check_decilm(adapter_for(qwen3).geometry(qwen3))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    model = tiny_llama(num_channels=512)
    folder, output = saved(model, tmp_path), tmp_path / "there"
    output.mkdir()
    (output / "mine").write_text("mine")
    geometry = adapter_for(model.config).geometry(model.config)
    with pytest.raises(OutputError):
        write_decilm(folder, model.config, geometry, output)
    assert [path.name for path in output.iterdir()] == ["mine"]


def test_the_vllm_plugin_enters_every_family(monkeypatch) -> None:
    entered: dict[str, str] = {}

    class Registry:
        register_model = staticmethod(entered.__setitem__)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=Registry))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    entry = project["project"]["entry-points"]["vllm.general_plugins"]["lightstride"]
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)()
    monkeypatch.delitem(sys.modules, module)
    assert set(entered) == {causal.__name__ for _, _, causal in LAYERED.values()}
    assert all(target.endswith(":TransformersForCausalLM") for target in entered.values())
