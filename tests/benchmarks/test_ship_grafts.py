"""Built-in smashed models: shipped small, opened by name, and missed in one clear line."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.benchmark import load_benchmark
from helpers.memory_toys import mixed_memory
from helpers.smash_toys import sharp, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.cli import main
from lightstride.errors import LightstrideError, ModelError
from lightstride.generate import Settings, generate
from lightstride.memory.plan_files import MemoryFile, read_plans, write_plans
from lightstride.models.opening import builtin, load
from lightstride.models.opening import explain as reading
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel

NAME = "toy-smash"


@pytest.fixture
def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that ships grafts, where `toy` and `toy-smash` are built in."""
    script = load_benchmark("ship_grafts")
    base = tmp_path / "base"
    save_checkpoint(sharp(tiny_llama(tied=False)), byte_tokenizer(), base)
    places = {"toy": "toy"}
    for module in (builtin, load, reading):
        monkeypatch.setattr(module, "BUILT_IN", places, raising=False)
        monkeypatch.setattr(module, "GRAFTS", {NAME: "toy"}, raising=False)
    monkeypatch.setattr(script, "GRAFTS", {NAME: "toy"})
    monkeypatch.setattr(builtin, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(load, "gguf_source", lambda _: base)
    monkeypatch.setattr(load, "gguf_as_folder", lambda folder: folder)
    return script


def smashed(folder: Path) -> Path:
    """A smashed toy that was made by a command with local paths."""
    model = toy(load.load_model("toy"))
    model.config.base = "toy"
    record = {"config": {"prompts": "/data/a.jsonl,/data/b.jsonl"}, "unit": "tokens/s"}
    save_checkpoint(model, byte_tokenizer(), folder, record=record)
    return folder


def test_grafts_are_shipped_small_and_opened_by_name(shipping: ModuleType, tmp_path: Path) -> None:
    source = smashed(tmp_path / "smashed")
    memory = mixed_memory(load.load_model("toy"), 1)
    plans = MemoryFile({0.5: memory.plan}, None, memory.scores)
    write_plans(source, plans, {})
    folder = shipping.ship(source, NAME, tmp_path / "assets")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "lightstride.json",
        "memory.json",
        "memory.safetensors",
    }
    assert read_plans(folder) == plans
    assert json.loads((folder / "config.json").read_text())["base"] == "toy"
    record = json.loads((folder / "lightstride.json").read_text())
    assert record["config"] == {"prompts": "a.jsonl,b.jsonl"}
    assert record["unit"] == "tokens/s"
    decoder = open_decoder(NAME)
    assert isinstance(decoder, SmashDecoder)
    lowered = SmashModel.from_pretrained(source)
    for graft in lowered.grafts():
        graft.to(torch.bfloat16).to(torch.float32)
    expected = SmashDecoder(lowered, byte_tokenizer())
    settings = Settings(max_new_tokens=12, mode="trust", confidence=0.3)
    assert generate(decoder, [[1, 2, 3]], settings)[0].steps == (
        generate(expected, [[1, 2, 3]], settings)[0].steps
    )


def test_plans_are_shipped_without_grafts_and_the_full_cache_stays_the_default(
    shipping: ModuleType, tmp_path: Path
) -> None:
    source = smashed(tmp_path / "smashed")
    folder = shipping.ship(source, NAME, tmp_path / "assets")
    with pytest.raises(ModelError, match="has no memory plans"):
        shipping.ship_plans(source, folder)
    memory = mixed_memory(load.load_model("toy"), 1)
    write_plans(source, MemoryFile({0.5: memory.plan}, 0.5, memory.scores), {"seconds": 1})
    shipping.ship_plans(source, folder)
    assert read_plans(folder) == MemoryFile({0.5: memory.plan}, None)
    facts = json.loads((folder / "memory.json").read_text())["facts"]
    assert facts == {"seconds": 1}


def test_grafts_that_are_too_large_are_not_shipped(
    shipping: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LIMIT", 1000)
    with pytest.raises(ModelError, match="bytes; 1,000 are allowed"):
        shipping.ship(smashed(tmp_path / "smashed"), NAME, tmp_path / "assets")
    assert not list((tmp_path / "assets").iterdir())


@pytest.mark.usefixtures("shipping")
def test_missing_grafts_are_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = "toy-smash is missing from this installation; make it with: lightstride smash toy"
    for use in (open_decoder, load.load_model, load.load_tokenizer):
        with pytest.raises(LightstrideError, match=said):
            use(NAME)  # type: ignore[operator]
    assert main(["generate", NAME, "-p", "Hi"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_built_in_graft_has_a_built_in_base() -> None:
    assert set(builtin.GRAFTS.values()) <= set(builtin.BUILT_IN)
    for name, base in builtin.GRAFTS.items():
        folder = builtin.ASSETS / name
        if folder.exists():
            assert json.loads((folder / "config.json").read_text())["base"] == base
            assert (folder / "model.safetensors").stat().st_size <= 8 * 10**6
