"""`lightstride recover` on a pruned toy: its result, its record, and the mistakes it names."""

import json
import re
from pathlib import Path

import pytest
import torch

from helpers.processes import run_ranks
from helpers.prune_runs import config_of, make_inputs
from helpers.recover_processes import command
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import ancestors_of, read_record, save_checkpoint
from lightstride.cli import main
from lightstride.commands.prune import prune
from lightstride.commands.recover import recover
from lightstride.commands.recovering import dense
from lightstride.commands.recovering.texts import (
    LOOP_TOKENS,
    LOOP_WEIGHT,
    Answered,
    answer_rows,
    given_answers,
    read_texts,
    without_loop,
)
from lightstride.commands.recovering.watch import Watch
from lightstride.config import RecoverConfig
from lightstride.config.recover import split_weight
from lightstride.errors import ConfigError, DataError, ModelError
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model
from lightstride.training.checkpoint import Progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy, its text, and the toy cut by half."""
    path = tmp_path_factory.mktemp("recover")
    make_inputs(path)
    prune(config_of(path, "cut", sparsity=(0.5,), search="none"))
    return path


def config_for(folder: Path, name: str, **changes: object) -> RecoverConfig:
    values: dict[str, object] = {
        "model": str(folder / "cut"),
        "output": str(folder / name),
        "minutes": 1.0,
        "text": (f"{folder / 'text.jsonl'}:2",),
        "tokens": 1024,
        "held_out_tokens": 256,
        "window": 32,
        "passes": 4,
        "step_tokens": 128,
        "learning_rate": 3e-3,
        "device": "cpu",
        "dtype": "float32",
    }
    return RecoverConfig(**{**values, **changes})  # type: ignore[arg-type]


def answers(count: int) -> list[Answered]:
    return [Answered((1, 2, 3), (4, 5, 6, 7), (-1, 9, -1, -1))] * count


def test_the_result_is_better_of_the_same_shape_and_knows_its_texts(folder: Path) -> None:
    result = recover(config_for(folder, "recovered"))
    numbers = result["numbers"]
    assert isinstance(numbers, dict)
    assert numbers["perplexity"] < numbers["unrecovered"]
    assert numbers["steps"] == 32
    assert numbers["evaluations"][0]["step"] == 0
    cut, better = (load_model(str(folder / name)) for name in ("cut", "recovered"))
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (cut, better)]
    assert shapes[0] == shapes[1]
    record = read_record(folder / "recovered")
    assert record["plan"] == read_record(folder / "cut")["plan"]
    assert record["data"]["recovery"]["documents"]  # type: ignore[index]
    whole = load_model(str(folder / "model"))
    assert ancestors_of(folder / "recovered") == (fingerprint(cut), fingerprint(whole))
    again = config_for(folder, "again", model=str(folder / "recovered"), passes=1, rank=2)
    assert recover(again)["kind"] == "recover"


def test_a_finished_training_is_resumed_to_the_same_weights(folder: Path) -> None:
    recover(config_for(folder, "one"))
    recover(config_for(folder, "two", work=str(folder / "one.work"), resume=True))
    ones, others = (load_model(str(folder / name)).state_dict() for name in ("one", "two"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in ones.items())


def test_a_model_without_a_record_needs_a_teacher(folder: Path) -> None:
    config = config_for(folder, "refused", model=str(folder / "model"))
    with pytest.raises(ConfigError, match="--teacher"):
        recover(config)


def test_a_teacher_of_another_vocabulary_is_refused(folder: Path) -> None:
    other = byte_tokenizer()
    other.add_tokens(["lightstride"])
    tiny_llama(vocab_size=264).save_pretrained(folder / "other")
    other.save_pretrained(folder / "other")
    with pytest.raises(ModelError, match="vocabulary"):
        recover(config_for(folder, "refused", teacher=str(folder / "other")))


def test_answers_count_where_they_are_predicted(folder: Path) -> None:
    config = config_for(folder, "x", answers=("own",), loss_on="answers", window=7)
    rows = answer_rows(answers(3), "own", config, 14)
    assert rows.tokens_NL.tolist() == [[1, 2, 3, 4, 5, 6, 7]] * 2
    assert rows.weights_NL.tolist() == [[0, 0, 1, LOOP_WEIGHT, 1, 1, 0]] * 2
    assert rows.ruled_out_NL.tolist() == [[-1, -1, -1, 9, -1, -1, -1]] * 2
    everything = config_for(folder, "x", answers=("own",), window=7)
    assert answer_rows(answers(3), "own", everything, 14).weights_NL.min() == 1
    with pytest.raises(DataError, match="own has 7 tokens; 32 are needed"):
        answer_rows(answers(1), "own", config_for(folder, "x", window=32), 100)


def test_a_loop_is_learned_from_as_far_as_it_takes_to_leave_it() -> None:
    sane = without_loop((1, 2), (4, 5, 6, 7) * 3)
    assert (sane.answer, set(sane.ruled_out)) == ((4, 5, 6, 7) * 3, {-1})
    looping = without_loop((1, 2), (4, 5, 6, 7) * 10)
    assert looping.answer == ((4, 5, 6, 7) * 7)[: 11 + LOOP_TOKENS]
    assert looping.ruled_out == (-1,) * 8 + looping.answer[8:]


def test_instruction_data_is_answers_by_the_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"instruction": "Add 1 to 2.", "output": "3"}))
    tokenizer = byte_tokenizer()
    (found,) = given_answers(str(path), tokenizer)
    assert tokenizer.decode(found.answer, skip_special_tokens=True) == "3"
    assert "Add 1 to 2." in tokenizer.decode(found.prompt)


@pytest.mark.parametrize("weight", [1, 3])
def test_answers_have_a_weight_beside_texts(folder: Path, tmp_path: Path, weight: int) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"instruction": f"Add 1 to {n}.", "output": str(n + 1)} for n in range(200)]
    path.write_text("\n".join(map(json.dumps, records)))
    text = str(folder / "text.jsonl")
    config = config_for(folder, "x", text=(text,), answers=(f"{path}:{weight}",))
    texts = read_texts(config, byte_tokenizer())
    of_text = len(texts.sources[0].tokens_NL)
    assert (of_text, len(texts.rows.tokens_NL)) == (32 // (1 + weight), 32)


@pytest.mark.parametrize("source", ["own:0", "own:-1", "own:inf", "own:nan", ":2"])
def test_a_weight_that_is_none_is_refused(folder: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"--answers .*WEIGHT"):
        config_for(folder, "x", answers=(source,))


def test_a_weight_stands_behind_the_last_colon() -> None:
    assert split_weight("wiki.txt:0.5") == ("wiki.txt", 0.5)
    assert split_weight("owner/name:config:train") == ("owner/name:config:train", 1.0)


def test_the_forecast_is_made_from_the_first_measurements(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([4.0, 3.7, 3.55, 3.5, 3.46, 3.4])
    monkeypatch.setattr(Watch, "nll", lambda self: next(losses))
    watch = Watch(tiny_llama(), None, config_for(folder, "x", minutes=60.0))  # type: ignore[arg-type]
    at = Progress()
    for minute in range(5):
        at.step, at.seconds, at.seconds_ahead = 10 * minute, 30.0 * minute + 70, 70.0
        watch(at)
    assert len(at.evaluations) == 5
    found = watch.forecast(at)
    assert found is not None
    assert found.low <= found.perplexity <= found.high
    assert at.evaluations[-1]["seconds"] == 120
    assert "after 60 minutes expect a perplexity of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "step", "said"),
    [
        ([3.521, 3.522, 3.522, 3.520, 3.508], 1, "too few steps yet for a forecast"),
        ([3.768, 3.768, 3.774, 3.796, 3.796], 5, "does not fall yet, so there is no forecast"),
    ],
)
def test_there_is_no_forecast_without_ground_for_one(
    losses: list[float],
    step: int,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = iter(losses)
    monkeypatch.setattr(Watch, "nll", lambda self: next(found))
    watch = Watch(tiny_llama(), None, config_for(folder, "x", minutes=85.0))  # type: ignore[arg-type]
    at = Progress()
    for look in range(5):
        at.step, at.seconds = step * look, 50.0 * look
        watch(at)
    assert watch.forecast(at) is None
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--minutes", "0"], ["--text", ":2"], ["--rank", "4", "--learn-head"], ["--top-k", "0"]],
)
def test_bad_numbers_are_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", "folder", "-o", "out", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_memory_is_said_and_may_be_less(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recover(config_for(folder, "more", passes=1))
    recover(config_for(folder, "less", passes=1, optimizer="factored", checkpoint_activations=True))
    said = capsys.readouterr().err
    assert said.count("GiB beside the models") == said.count("activations)") == 2


@pytest.mark.timeout(400)
def test_processes_that_share_the_weights_out_save_what_one_does(folder: Path) -> None:
    one = recover(config_for(folder, "alone", passes=1))
    run_ranks(command, 2, config_for(folder, "together", passes=1), seconds=120)
    two = json.loads((folder / "together" / "result.json").read_text())
    weights, others = (load_model(str(folder / n)).state_dict() for n in ("alone", "together"))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-4)
    numbers = one["numbers"]
    assert isinstance(numbers, dict)
    assert two["numbers"]["perplexity"] == pytest.approx(numbers["perplexity"], rel=1e-3)


def test_the_first_version_of_fsdp_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="--fsdp_version 2"):
        recover(config_for(folder, "refused"))


def config_within(folder: Path, memory: str, **changes: object) -> RecoverConfig:
    deep = str(folder / "deep")
    return config_for(folder, "small", memory=memory, teacher=deep, passes=1, **changes)


def test_a_teacher_larger_than_memory_is_read_block_by_block(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny_llama(num_layers=40), byte_tokenizer(), folder / "deep")
    monkeypatch.setattr(dense, "size_text", lambda size: f"{size}B")
    with pytest.raises(ConfigError, match="the least that works") as caught:
        recover(config_within(folder, "1MB"))
    least = str(caught.value).rsplit(" ", 1)[1]
    with pytest.raises(ConfigError, match=f"the least that works is {least}"):
        recover(config_within(folder, f"{int(least[:-1]) - 1}B"))
    assert not (folder / "small.work").exists()
    small = recover(config_within(folder, least))
    assert "128 tokens at a time" in capsys.readouterr().err
    whole = recover(config_within(folder, "8GiB", output=str(folder / "whole")))
    assert "at a time" not in capsys.readouterr().err
    ones, others = (load_model(str(folder / n)).state_dict() for n in ("small", "whole"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in ones.items())
    first, second = (each["numbers"]["losses"] for each in (small, whole))  # type: ignore[index]
    assert first == second


def test_a_refusal_of_memory_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["recover", str(folder / "cut"), "-o", str(folder / "refused"), "--window", "32"]
    words += ["--text", str(folder / "text.jsonl"), "--tokens", "256", "--held-out-tokens", "64"]
    assert main([*words, "--memory", "1MB"]) == 2
    assert re.search(r"the least that works is [\d.]+GiB$", capsys.readouterr().err.strip())
    monkeypatch.setattr(dense, "is_asked_for", lambda: True)
    with pytest.raises(ConfigError, match="--use_fsdp shares its blocks out"):
        recover(config_for(folder, "refused", memory="8GiB"))


def test_the_result_is_json(folder: Path) -> None:
    recover(config_for(folder, "json", passes=1))
    assert json.loads((folder / "json" / "result.json").read_text())["kind"] == "recover"
