"""The evaluate command: models side by side, and warnings of known text."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import save_checkpoint
from lightstride.commands import evaluate as run
from lightstride.commands.evaluate import check_inputs, evaluate
from lightstride.config import EvaluateConfig
from lightstride.data.documents import document_id, read_documents
from lightstride.errors import ConfigError
from lightstride.evaluate.outcome import read_items
from lightstride.results import read_result

TEXT = "\n\n".join(f"A lighthouse stands on rock {n}, and its light is long." for n in range(40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, a text and the data of two tasks."""
    draw = random.Random(0)
    tokenizer = byte_tokenizer()
    save_checkpoint(tiny_llama(seed=0), tokenizer, tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    for name in ("piqa", "boolq"):
        lines = [
            {
                "query": " ".join(draw.choices(TEXT.split(), k=4)),
                "choices": draw.choices(["yes", "no", "rock", "a light"], k=2),
                "gold": draw.randrange(2),
            }
            for _ in range(10)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def save_small(folder: Path, calibration: Sequence[str] = ()) -> None:
    documents = {"source": "text.txt", "documents": list(calibration)}
    record = {"data": {"calibration": documents, "search": {"source": "s", "documents": []}}}
    model = tiny_llama(seed=1, num_channels=32)
    save_checkpoint(model, byte_tokenizer(), folder / "small", record=record)


def config(folder: Path, **changes: object) -> EvaluateConfig:
    base = EvaluateConfig(
        model=str(folder / "small"),
        against=str(folder / "dense"),
        perplexity=str(folder / "text.txt"),
        window=64,
        tasks=("piqa,boolq",),
        task_data=str(folder),
        limit=6,
        dtype="float32",
        device="cpu",
        output=str(folder / "out"),
    )
    return replace(base, **changes)


def test_two_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small(folder)
    result = evaluate(config(folder))
    assert read_result(folder / "out" / "result.json") == result
    numbers = result["numbers"]
    model, against, kept = numbers["model"], numbers["against"], numbers["retained"]
    assert model["parameters"] < against["parameters"]
    assert model["weight_bytes"] == 4 * model["parameters"]
    assert model["perplexity"]["num_tokens"] == against["perplexity"]["num_tokens"] > 0
    assert list(kept) == ["piqa", "boolq", "mean"]
    for task in ("piqa", "boolq"):
        assert model["tasks"][task]["num_items"] == 6
        ours, theirs = (read_items(one["tasks"][task]["items"]) for one in (model, against))
        assert len(ours) == 6
        assert kept[task]["difference"] == pytest.approx(fmean(ours) - fmean(theirs))
    assert kept["mean"]["score"] == pytest.approx(
        (kept["piqa"]["score"] + kept["boolq"]["score"]) / 2
    )
    assert set(result["data"]) == {"piqa", "boolq", str(folder / "text.txt")}
    lines = capsys.readouterr().out.splitlines()
    means = [place for place, line in enumerate(lines) if line.startswith("| mean of 2")]
    assert len(means) == 3
    assert all(lines[place - 1].startswith("| boolq") for place in means)


def test_one_model_and_one_document_on_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(folder / "dense"), "--perplexity", str(folder / "text.txt")]
    arguments += ["--window", "32", "--every", "9", "--json", "-o", str(folder / "out")]
    assert cli.main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "evaluate"
    assert document["numbers"]["model"]["perplexity"]["value"] > 1
    assert "retained" not in document["numbers"]


def test_warns_of_text_that_the_model_was_made_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (document,) = read_documents(str(folder / "text.txt"))
    save_small(folder, calibration=[document_id(document)])
    result = evaluate(config(folder, tasks=()))
    (warning,) = result["numbers"]["model"]["warnings"]
    assert "1 of the 1 documents" in warning
    assert "used for its calibration" in warning
    assert result["numbers"]["against"]["warnings"] == []
    assert f"warning: {folder / 'small'}: {warning}" in capsys.readouterr().err


def test_no_warning_for_other_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_small(folder, calibration=[document_id("another text")])
    result = evaluate(config(folder, tasks=(), against=None))
    assert result["numbers"]["model"]["warnings"] == []
    assert "warning" not in capsys.readouterr().err


def test_tasks_without_the_harness_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small(folder)
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--tasks needs lm-eval: pip install"):
        evaluate(config(folder, perplexity=None))


def test_fidelity_last_words_and_loops_are_held_against_the_dense_model(folder: Path) -> None:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Say {n}"}) for n in range(3)))
    (folder / "passages.jsonl").write_text(json.dumps({"text": TEXT.replace("\n", " ")[:400]}))
    config = EvaluateConfig(
        model=str(folder / "dense"),
        against=str(folder / "dense"),
        fidelity=str(folder / "passages.jsonl"),
        loops=str(prompts),
        instructions=3,
        yardsticks=("q8_0",),
        window=64,
        output=str(folder / "out"),
        device="cpu",
        dtype="float32",
    )
    numbers = evaluate(config)["numbers"]
    assert isinstance(numbers, dict)
    assert numbers["fidelity"]["same_likeliest"] == 1
    assert numbers["last_words"]["model"] == numbers["last_words"]["against"]
    assert numbers["loops"]["model"] == numbers["loops"]["against"]
    assert numbers["instructions"]["model"] == numbers["instructions"]["against"]
    assert 0 < numbers["yardsticks"]["q8_0"]["mean"] < 0.1
    with pytest.raises(ConfigError, match="has no memory plan"):
        check_inputs(replace(config, kv=0.5))
    with pytest.raises(ConfigError, match="--against"):
        EvaluateConfig(model="m", loops="p")
