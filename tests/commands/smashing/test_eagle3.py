"""`smash --drafter eagle3` on toys: from prompts to a head that answers as its base."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.agree import assert_same_greedy
from helpers.headed_toys import deep_toy, deep_uneven
from helpers.processes import start_ranks
from helpers.smash_runs import smash_config, write_prompts
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.commands.smash import smash
from lightstride.commands.smashing.eagle3 import foretold
from lightstride.config import SmashRunConfig
from lightstride.errors import ConfigError, ModelError
from lightstride.generate import Settings, generate
from lightstride.memory.plan_files import read_plans
from lightstride.smash.decode.headed import HeadedDecoder

pytestmark = pytest.mark.timeout(400)  # processes of their own import torch, slowly if others work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eagle3")
    tokenizer = byte_tokenizer()
    save_checkpoint(deep_toy(), tokenizer, path / "dense")
    save_checkpoint(deep_uneven(), tokenizer, path / "uneven")
    save_checkpoint(tiny_llama(tied=False), tokenizer, path / "shallow")
    write_prompts(path)
    return path


def config_of(folder: Path, output: str, **changes: object) -> SmashRunConfig:
    values: dict[str, object] = {
        "drafter": "eagle3",
        "draft_steps": 3,
        "steps": 6,
        "micro_vocab": 40,
        "answers": str(folder / "answers"),
        **changes,
    }
    return smash_config(folder, output, "dense", **values)


@pytest.mark.parametrize("base", ["dense", "uneven"])
def test_from_prompts_to_answers(folder: Path, base: str) -> None:
    config = config_of(
        folder, f"{base}-head", model=str(folder / base), answers=str(folder / f"{base}.answers")
    )
    numbers = smash(config)["numbers"]
    assert numbers["training"]["steps"] == 6
    assert numbers["training"]["answers_seen"][-1][0] > 20
    assert numbers["tokens_per_step"]["lossless"] >= 1
    told = foretold(numbers["training"]["answers_seen"])  # none where six steps bring nothing
    assert numbers["forecast"] == told
    assert (numbers["draft_vocabulary"], numbers["taps"]) == (40, [2, 4, 5])
    decoder, plain = open_decoder(config.output), open_decoder(str(folder / base))
    assert isinstance(decoder, HeadedDecoder)
    prompt = [72, 101, 108, 108, 111]
    (expected,) = generate(plain, [prompt], Settings(max_new_tokens=12))
    for mode in ("lossless", "ar"):
        (found,) = generate(decoder, [prompt], Settings(max_new_tokens=12, mode=mode))
        assert_same_greedy(plain.model, prompt, found.tokens, expected.tokens)


def test_killed_and_resumed_it_ends_with_the_same_weights(folder: Path) -> None:
    whole = config_of(folder, "whole")
    smash(whole)
    killed = config_of(folder, "killed", steps=6)
    [process] = start_ranks(smash, 1, killed)
    while process.is_alive() and not (Path(killed.work_folder) / "training.safetensors").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    smash(replace(killed, resume=True))
    one, two = (
        load_file(Path(each.output) / "head" / "model.safetensors") for each in (whole, killed)
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_a_head_is_gone_on_with_on_another_base(folder: Path) -> None:
    first = config_of(folder, "begun")
    smash(first)
    second = config_of(
        folder,
        "gone-on",
        model=str(folder / "uneven"),
        answers=str(folder / "uneven.answers"),
        start_from=first.output,
        micro_vocab=None,
        draft_window=8,
        steps=1,
        learning_rate=1e-9,
    )
    numbers = smash(second)["numbers"]
    assert numbers["started_from"]["training"]["steps"] == 6
    assert numbers["window"] == 8
    before, after = (
        load_file(Path(each.output) / "head" / "model.safetensors") for each in (first, second)
    )
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5)
    third = config_of(folder, "from-files", start_from=f"{first.output}/head", micro_vocab=None,
                      steps=1)  # fmt: skip
    assert smash(third)["numbers"]["draft_vocabulary"] == 40


def test_mistakes_are_known_before_anything_is_answered(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = {"answers": str(folder / "never"), "micro_vocab": None}
    with pytest.raises(ConfigError, match="too shallow"):
        smash(config_of(folder, "x", model=str(folder / "shallow"), **fresh))
    with pytest.raises(ModelError, match="architectures"):
        smash(config_of(folder, "x", start_from=str(folder / "uneven"), **fresh))
    assert not (folder / "never").exists()
    assert not (folder / "x").exists()
    start = ["smash", str(folder / "dense"), "-o", str(folder / "x")]
    for flags, message in (
        (["--drafter", "eagle3", "--max-segment", "3"], "left out with --drafter eagle3"),
        (["--drafter", "eagle3", "--draft-steps", "9"], "from 3 to 7"),
        (["--draft-window", "9"], "left out with --drafter micro"),
        (["--drafter", "eagle3", "--start-from", "a", "--micro-vocab", "9"], "its own vocabulary"),
    ):
        assert cli.main([*start, *flags]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_forecast_goes_on_with_the_curve() -> None:
    curve = [[float(n), 3 - 2 * n**-0.5] for n in (100, 200, 400, 800)]
    told = foretold(curve)
    assert told is not None
    assert [each["answers"] for each in told] == [800, 1600, 3200, 8000]
    last = told[-1]
    assert last["low"] <= last["tokens_per_step"] <= last["high"]  # type: ignore[operator]
    assert last["tokens_per_step"] == pytest.approx(3 - 2 * 8000**-0.5, rel=0.02)
    assert foretold(curve[:2]) is None
    assert foretold([[each[0], -each[1] + 9] for each in curve]) is None


def test_memory_plans_are_searched_beside_a_head_and_for_one_that_is_there(folder: Path) -> None:
    first = config_of(folder, "both", kv=(0.8,), kv_context=320)
    assert set(smash(first)["numbers"]["memory"]["plans"]) == {"0.8"}
    later = config_of(
        folder, "later", model=str(folder / "both"), drafter="micro", draft_steps=None,
        answers=None, kv=(0.6,), kv_context=320,
    )  # fmt: skip
    assert set(smash(later)["numbers"]["plans"]) == {"0.6"}
    for output, budget in (("both", 0.8), ("later", 0.6)):
        decoder = open_decoder(str(folder / output))
        assert isinstance(decoder, HeadedDecoder)
        plans = read_plans(folder / output)
        assert plans is not None
        assert plans.budgets == (1.0, budget)
        assert decoder.memory is not None
        assert decoder.memory.plan == plans.plans[budget]
    again = [open_decoder(str(folder / name), kv=1.0) for name in ("both", "later")]
    asked = Settings(max_new_tokens=8, ignore_end_tokens=True)
    answers = [generate(decoder, [[70, 71, 72]], asked)[0].tokens for decoder in again]
    assert answers[0] == answers[1]
