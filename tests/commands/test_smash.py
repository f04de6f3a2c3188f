"""The whole command on toys: from prompts to a folder that answers."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.agree import assert_same_greedy
from helpers.processes import start_ranks
from helpers.smash_runs import smash_config, write_prompts
from helpers.smash_toys import BASES, sharp
from helpers.toys import byte_tokenizer
from lightstride import cli
from lightstride.checkpoint import open_decoder, read_record, save_checkpoint
from lightstride.commands.evaluate import evaluate
from lightstride.commands.smash import smash
from lightstride.config import EvaluateConfig, SmashRunConfig
from lightstride.errors import LightstrideError
from lightstride.generate import Settings, generate
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model

pytestmark = pytest.mark.timeout(400)  # processes of their own import torch, slowly if others work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smash")
    for name in ("llama", "uneven"):
        save_checkpoint(sharp(BASES[name]()), byte_tokenizer(), path / name)
    write_prompts(path)
    return path


def config_of(folder: Path, output: str, **changes: object) -> SmashRunConfig:
    return smash_config(folder, output, "llama", **{"steps": 4, "max_segment": 3, **changes})


@pytest.mark.parametrize("base", ["llama", "uneven"])
def test_from_prompts_to_answers(folder: Path, base: str) -> None:
    config = config_of(folder, f"{base}-smashed", model=str(folder / base))
    result = smash(config)
    numbers = result["numbers"]
    assert numbers["training"]["steps"] == 4
    assert numbers["tokens_per_step"]["lossless"] >= 1
    assert json.loads((Path(config.output) / "result.json").read_text())["kind"] == "smash"
    stored = json.loads((Path(config.output) / "config.json").read_text())
    assert stored["base"] == f"../{base}"
    assert read_record(config.output)["data"] == {
        config.prompts: {"sha256": result["data"][config.prompts]}
    }
    assert len(stored["calibration"]) == 2
    smashed, plain = open_decoder(config.output), open_decoder(str(folder / base))
    prompt = [[72, 101, 108, 108, 111]]
    (expected,) = generate(plain, prompt, Settings(max_new_tokens=12))
    assert stored["mode"] == "lossless"
    names = set(load_file(Path(config.output) / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"micro", "stop"}
    for mode in ("lossless", "ar"):
        settings = Settings(max_new_tokens=12, mode=mode, confidence=0.1)
        (found,) = generate(smashed, prompt, settings)
        assert_same_greedy(plain.model, prompt[0], found.tokens, expected.tokens)


def test_published_grafts_merge_a_step_into_one_entry(folder: Path) -> None:
    sizes = {"micro_layers": 1, "merged_share": 1.0, "minutes": None}
    config = config_of(folder, "published", grafts="paper", **sizes)
    numbers = smash(config)["numbers"]
    assert set(numbers["tokens_per_step"]["trust"]) == {"0.5", "0.7", "0.8", "0.9", "0.95"}
    assert numbers["tokens_per_step"]["merged"]["kl"] > 0
    stored = json.loads((Path(config.output) / "config.json").read_text())
    assert stored["mode"] == "trust"
    settings = Settings(max_new_tokens=24, confidence=0.01, ignore_end_tokens=True)
    (found,) = generate(open_decoder(config.output), [[72, 101]], settings)
    assert found.kv_entries == found.macro_steps - 1 < 20


def test_a_base_that_learns_is_saved_beside_and_compared(folder: Path) -> None:
    config = config_of(folder, "taught", train_base=True, base_rate=1e-3, steps=3)
    numbers = smash(config)["numbers"]
    nats = numbers["control"]
    assert set(nats) == {"nats_base", "nats_control", "nats_smashed"}
    assert nats["nats_control"] < nats["nats_base"]
    assert nats["nats_smashed"] != nats["nats_base"]
    stored = json.loads((Path(config.output) / "config.json").read_text())
    assert stored["base"] == "base"
    text = folder / "text.txt"
    text.write_text("A light stands on a rock. " * 40)
    base = EvaluateConfig(
        model=str(Path(config.output) / "base"),
        perplexity=str(text),
        window=64,
        output=str(folder / "evaluation"),
        device="cpu",
        dtype="float32",
    )
    for model in (base.model, config.output):
        found = evaluate(replace(base, model=model))["numbers"]["model"]
        assert found["perplexity"]["value"] > 1
    before = load_file(folder / "llama" / "model.safetensors")
    after = load_file(Path(config.output) / "base" / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    moved = folder / "moved"
    Path(config.output).rename(moved)
    (found,) = generate(open_decoder(str(moved)), [[72, 101]], Settings(max_new_tokens=4))
    assert len(found.tokens) == 4


def test_killed_and_resumed_it_ends_with_the_same_weights(folder: Path) -> None:
    whole = config_of(folder, "whole", steps=6)
    smash(whole)
    killed = config_of(folder, "killed", steps=6)
    for moment in ("answers.jsonl", "training.safetensors"):
        [process] = start_ranks(smash, 1, killed)
        while process.is_alive() and not (Path(killed.work_folder) / moment).exists():
            time.sleep(0.01)
        process.kill()
        process.join()
        killed = replace(killed, resume=True)
    smash(killed)
    one, two = (load_file(Path(each.output) / "model.safetensors") for each in (whole, killed))
    assert set(one) == set(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_answers_can_be_shared_by_runs(folder: Path) -> None:
    answers = str(folder / "shared-answers")
    for name in ("first", "second"):
        smash(config_of(folder, name, answers=answers, seed=0, steps=1))
    assert (folder / "shared-answers" / "answers.jsonl").exists()
    assert not (folder / "first.work" / "answers.jsonl").exists()


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = folder / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    start = ["smash", str(folder / "llama"), "--prompts", str(folder / "prompts.jsonl")]
    for arguments, message in (
        ([*start, "-o", str(taken)], "is not empty"),
        ([*start, "-o", str(folder / "x"), "--steps", "0"], "--steps 0 is not allowed"),
        ([*start, "-o", str(folder / "x"), "--held-out", "1"], "--held-out 1 is not allowed"),
        ([*start[:3], str(folder / "none.jsonl"), "-o", str(folder / "x")], "none.jsonl"),
        ([*start, "-o", str(folder / "x"), "--num-prompts", "4"], "too few"),
        ([*start, "-o", str(folder / "x"), "--merged-share", "0.2"], "left out with --grafts thin"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("lightstride: error: ")
        assert message in error
    assert (taken / "thesis.txt").read_text() == "years of work"


def test_a_smashed_model_is_not_smashed_again(folder: Path) -> None:
    config = config_of(folder, "once", steps=1)
    smash(config)
    with pytest.raises(LightstrideError, match="is smashed already"):
        smash(config_of(folder, "twice", model=config.output))
    with pytest.raises(LightstrideError, match="go on with it by --resume"):
        smash(config_of(folder, "new-name", work=config.work_folder, steps=1))


def test_grafts_are_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = config_of(folder, "begun")
    smash(first)
    second = config_of(folder, "gone-on", start_from=first.output, steps=1, learning_rate=1e-9)
    result = smash(second)
    assert result["numbers"]["started_from"]["training"]["steps"] == 4
    before = load_file(Path(first.output) / "model.safetensors")
    after = load_file(Path(second.output) / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5)
    flags = ["smash", str(folder / "llama"), "-o", str(folder / "refused"), "--max-segment", "3"]
    flags += ["--prompts", str(folder / "prompts.jsonl"), "--preset", "demo", "--start-from"]
    assert cli.main([*flags, str(folder / "llama")]) == 2
    assert "is not a smashed model" in capsys.readouterr().err
    (folder / "other").mkdir()
    other = config_of(folder, "other/smashed", model=str(folder / "uneven"))
    smash(other)
    capsys.readouterr()
    record = {"kind": "recover", "ancestors": [fingerprint(load_model(str(folder / "llama")))]}
    made_of_it = sharp(BASES["llama"]())
    with torch.no_grad():
        made_of_it.get_input_embeddings().weight.mul_(1.1)
    save_checkpoint(made_of_it, byte_tokenizer(), folder / "recovered", record=record)
    third = config_of(folder, "on-recovered", model=str(folder / "recovered"), steps=1,
                      start_from=first.output)  # fmt: skip
    assert smash(third)["numbers"]["started_from"]["training"]["steps"] == 4
    fourth = config_of(folder, "once-more", start_from=second.output, steps=1)
    origin = smash(fourth)["numbers"]["started_from"]
    assert origin["started_from"]["training"]["steps"] == 4
    capsys.readouterr()
    assert cli.main([*flags, other.output]) == 2
    assert "belong to another base" in capsys.readouterr().err.splitlines()[-1]
