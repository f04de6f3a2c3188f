"""Grafts on disk: what is stored, read back, and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.agree import assert_close_logits, assert_same_weights
from helpers.predictions import predict
from helpers.smash_folders import save_folders
from helpers.smash_toys import BASES, PROMPTS, slot_batch, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.errors import ModelError
from lightstride.generate import Settings, generate
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return save_folders(tmp_path)


def test_saved_and_opened_it_is_the_same(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    first = toy(load_model(str(base)), micro_vocabulary=range(0, 256, 3))
    opened = SmashModel.from_pretrained(smashed)
    assert_same_weights(opened, first)
    batch = slot_batch([1, 2, 3], [[7, 11], [65, 66, 7], [11]])
    one, two = predict(first, batch), predict(opened, batch)
    assert_close_logits(two.first_ND, one.first_ND)
    assert_close_logits(opened.micro_logits(two.later_JD), first.micro_logits(one.later_JD))
    settings = Settings(max_new_tokens=16, confidence=0.4)
    before = generate(SmashDecoder(first, byte_tokenizer()), PROMPTS, settings)
    after = generate(open_decoder(str(smashed)), PROMPTS, settings)
    assert [answer.steps for answer in before] == [answer.steps for answer in after]


def test_only_the_grafts_are_stored(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    names = set(load_file(smashed / "model.safetensors"))
    assert not any(name.startswith("base.") for name in names)
    kinds = {name.split(".")[0] for name in names}
    assert kinds == {"embedder", "micro", "stop", "micro_vocabulary_M"}
    config = json.loads((smashed / "config.json").read_text())
    assert config["base"] == "../base"
    assert config["base_fingerprint"] == fingerprint(load_model(str(base)))


def test_both_folders_can_be_moved_together(folders: tuple[Path, Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in folders:
        shutil.move(folder, elsewhere / folder.name)
    model = SmashModel.from_pretrained(elsewhere / "smashed")
    model.save_pretrained(elsewhere / "again")
    assert json.loads((elsewhere / "again" / "config.json").read_text())["base"] == "../base"


def damage(smashed: Path, kind: str) -> None:
    path = smashed / "model.safetensors"
    state = load_file(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "corrupt":
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    elif kind == "missing":
        path.unlink()
    elif kind == "not finite":
        state["stop.bias"][0] = torch.nan
        save_file(state, path)
    elif kind == "lacking":
        del state["stop.bias"]
        save_file(state, path)
    elif kind == "surplus":
        save_file({**state, "more": torch.zeros(2)}, path)
    elif kind == "size":
        save_file({**state, "stop.bias": torch.zeros(2)}, path)
    else:
        config = json.loads((smashed / "config.json").read_text())
        changes = {
            "no base": {"base": "../nothing"},
            "taps": {"taps": [1, 9]},
            "heads": {"embedder_heads": 5},
        }
        (smashed / "config.json").write_text(json.dumps({**config, **changes[kind]}))


KINDS = (
    "truncated", "corrupt", "missing", "not finite", "lacking", "surplus", "size", "no base",
    "taps", "heads",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoints_are_one_line(
    folders: tuple[Path, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, smashed = folders
    damage(smashed, kind)
    assert cli.main(["generate", str(smashed), "-p", "hello"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightstride: error: ")
    assert captured.err.count("\n") == 1


def test_another_base_is_refused(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    with pytest.raises(ModelError, match="belong to the base"):
        SmashModel.from_pretrained(smashed, base=BASES["uneven"]())
    shutil.rmtree(base)
    save_checkpoint(tiny_llama(seed=5, tied=False), byte_tokenizer(), base)
    with pytest.raises(ModelError, match="belong to the base"):
        open_decoder(str(smashed))
