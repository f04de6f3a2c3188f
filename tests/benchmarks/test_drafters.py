"""benchmarks/drafters.py on toys: what it counts of each model, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark, save_smashed_and_prompts

benchmark = load_benchmark("drafters")


def run(folders: list[Path], prompts: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The benchmark's exit code."""
    argv = ["drafters.py", *map(str, folders), "--prompts", str(prompts), "--dtype", "float32"]
    argv += ["--new-tokens", "6", "--trees", "1", "4", "--domains", "chat", "--per-domain", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    return int(benchmark.main())


def test_every_drafter_is_measured_with_every_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_smashed_and_prompts(tmp_path)
    assert run([tmp_path / "smashed"], tmp_path / "prompts.jsonl", monkeypatch) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    mine = document["smashed"]
    assert mine["level_bytes"] > 0
    assert mine["learned"] is None
    chat = mine["domains"]["chat"]
    assert set(chat) == {"ar", "tree1", "tree4", "pays", "lookups"}
    assert chat["ar"]["tokens_per_step"] == chat["tree1"]["tokens_per_step"] == 1
    assert chat["tree4"]["tokens_per_step"] > 1
    assert chat["tree4"]["over_ar"]["processor"] > 0


def test_a_model_without_a_drafter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_smashed_and_prompts(tmp_path)
    assert run([tmp_path / "base"], tmp_path / "prompts.jsonl", monkeypatch) == 2
    assert "has no drafter" in capsys.readouterr().err
    assert run([tmp_path / "base", tmp_path / "base"], tmp_path / "prompts.jsonl", monkeypatch) == 2
    assert "two models have the same name" in capsys.readouterr().err
