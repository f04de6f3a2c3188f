"""benchmarks/quality.py: every checkpoint against the dense one, nothing measured twice."""

import json
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.commands.report import report
from lightstride.config import EvaluateConfig, ReportConfig
from lightstride.evaluate.outcome import read_items
from lightstride.results import read_result

quality = load_benchmark("quality")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line over two toys, run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "WINDOW", 32)
    record = {"numbers": {"sparsity": 0.2}}
    save_checkpoint(tiny_llama(), byte_tokenizer(), "dense")
    save_checkpoint(tiny_llama(seed=1, num_channels=32), byte_tokenizer(), "small", record=record)
    Path("text.txt").write_text("A light on a rock. " * 40)
    lines = [
        {"query": f"Is {n} odd?", "choices": ["no", "yes"], "gold": n % 2, "n": n} for n in range(8)
    ]
    Path("boolq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = "quality --models dense=dense small=small --text text.txt --task-data . --tasks boolq "
    return [*words.split(), "--dtype", "float32", "--work", "work", "-o", "quality.json"]


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    monkeypatch.setattr(sys, "argv", command)
    assert quality.main() == 0
    return read_result("quality.json")["numbers"]["models"]


def test_measures_what_is_missing_and_nothing_else(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["--parts", "sampled", "tasks", "--limit", "6"]
    models = run([*command, *parts], monkeypatch)
    small = models["small"]
    assert (small["sparsity"], models["dense"]["sparsity"]) == (0.2, 0.0)
    assert small["perplexity"]["sampled"] > 1
    assert small["perplexity"]["full"] is small["speed"] is None
    assert small["tasks"]["boolq"]["num_items"] == 6
    assert small["mean"] == small["retained"]["boolq"]
    assert models["dense"]["mean"]["ratio"] == 1
    out, err = capsys.readouterr()
    report(ReportConfig(folder=("work",), output="page.html"))
    assert "With 12.9% fewer parameters than dense, small retains" in Path("page.html").read_text()
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["dense", "small"]
    assert err.count("[") >= 4
    measured: list[str] = []
    evaluate = quality.evaluate

    def noted(config: EvaluateConfig) -> object:
        measured.append(config.output)
        return evaluate(config)

    monkeypatch.setattr(quality, "evaluate", noted)
    assert run([*command, *parts], monkeypatch) == models
    assert measured == []
    run([*command, "--parts", "tasks", "--limit", "5"], monkeypatch)
    assert measured == ["work/dense/boolq-5", "work/small/boolq-5"]


def test_some_models_are_measured_on_all_items(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny_llama(seed=2, num_channels=40), byte_tokenizer(), "middle")
    place = command.index("small=small")
    more = [*command[:place], "middle=middle", *command[place:]]
    flags = ["--parts", "tasks", "--limit", "3", "--full", "dense", "middle"]
    models = run([*more, *flags], monkeypatch)
    counts = {name: models[name]["tasks"]["boolq"]["num_items"] for name in models}
    assert counts == {"dense": 8, "middle": 8, "small": 3}
    dense = read_result("work/dense/boolq/result.json")["numbers"]["model"]["tasks"]["boolq"]
    first = sum(read_items(dense["items"])[:3]) / 3
    small = models["small"]
    assert small["mean"]["against"] == small["first_items"]["against"] == pytest.approx(first)
    assert models["middle"]["mean"]["against"] == pytest.approx(dense["value"])
    assert models["middle"]["first_items"]["against"] == pytest.approx(first)


def test_a_newer_model_is_measured_again(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["--parts", "sampled"]
    run([*command, *parts], monkeypatch)
    result = Path("work/small/sampled/result.json")
    made = result.stat().st_mtime_ns
    Path("small/config.json").touch()
    run([*command, *parts], monkeypatch)
    assert result.stat().st_mtime_ns > made


def test_perplexity_needs_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quality", "--models", "a=b", "--work", "w", "-o", "o", "--parts", "full"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        quality.main()
