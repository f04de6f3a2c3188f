"""benchmarks/engines_smash.py on a toy: llama.cpp beside our chains, an engine of another
environment, contexts, and what is refused."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")

from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.benchmark import load_benchmark
from helpers.headed_toys import deep_toy, random_head
from lightstride.checkpoint import save_checkpoint, save_headed
from lightstride.results import read_result

benchmark = load_benchmark("engines_smash")

VLLM = """#!/usr/bin/env python3
import json, sys
job = json.load(sys.stdin)
drafts = job["speculative"] is not None
print("noise")
print(json.dumps({
    "vllm": "0", "answers": [[1, 2, 3, 4]] * len(job["prompts"]), "seconds": 1 + drafts,
    "processor_seconds": 1, "forwards": 2 * drafts, "drafted": 6 * drafts, "accepted": drafts,
}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a head, and prompts."""
    base, tokenizer = deep_toy(), ascii_tokenizer()
    tokenizer.chat_template = "{% for each in messages %}{{ each.content }}{% endfor %}"
    save_checkpoint(base, tokenizer, tmp_path / "base")
    save_headed(
        random_head(), base, str(tmp_path / "base"), tokenizer, tmp_path / "headed", record={}
    )
    lines = [json.dumps({"prompt": f"q{n}"}) for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """The benchmark's exit code."""
    argv = ["engines_smash.py", str(folder / "headed"), "--prompts", str(folder / "prompts.jsonl")]
    argv += ["--questions", str(folder / "prompts.jsonl"), "--threads", "1", "--new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", [*argv, "--prompt-tokens", "100", *words])
    return int(benchmark.main())


def test_llama_cpp_is_compared_with_our_chains(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "found.json"
    words = ["--rounds", "1", "--per-domain", "2", "--contexts", "--output", str(output)]
    assert run(folder, monkeypatch, words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == read_result(output)["numbers"]
    head = document["llama_cpp"]["head"]
    assert head["prompts"] == head["same"] + head["near_ties"] + head["parted"] == 2
    assert head["parted"] == 0
    assert head["drafts"] > 0
    assert head["accepted"] == head["ours"]["accepted"]
    assert head["over_ours"]["tokens_per_step"] == 1
    assert set(document["llama_cpp"]["gain"]) == {"head", "ngram"}


def test_vllm_answers_from_its_own_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = folder / "python"
    engine.write_text(VLLM)
    engine.chmod(0o755)
    words = ["--rounds", "1", "--engines", "--vllm", str(engine), "--contexts"]
    assert run(folder, monkeypatch, words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["vllm"]
    assert found["vllm"] == "0"
    assert (found["head"]["same"], found["head"]["tokens_per_step"]) == (3, 1.5)
    assert found["gain"] == {"head": 0.5, "ngram": 0.5}


def test_contexts_are_short_and_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--engines", "--contexts", "40", "80", "--windows", "8", "--asked", "1"]
    assert run(folder, monkeypatch, [*words, "--turn-tokens", "8"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["contexts"]
    assert set(found) == {"all", "8"}
    assert set(found["8"]) == {"40", "80"}


def test_a_model_without_a_head_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engines_smash.py", str(folder / "base")])
    assert benchmark.main() == 2
    assert "has no draft head" in capsys.readouterr().err
