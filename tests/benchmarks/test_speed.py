"""benchmarks/speed.py on a toy: what it counts, how it compares, and what it refuses."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark, save_smashed_and_prompts
from helpers.toys import byte_tokenizer
from lightstride.results import read_result

benchmark = load_benchmark("speed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A smashed model on its base, and prompts of two domains."""
    save_smashed_and_prompts(tmp_path)
    return tmp_path


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """The benchmark's exit code."""
    argv = ["speed.py", "--model", str(folder / "smashed"), "--dtype", "float32"]
    argv += ["--prompts", str(folder / "prompts.jsonl"), "--new-tokens", "6", *words]
    monkeypatch.setattr(sys, "argv", argv)
    return int(benchmark.main())


def test_every_way_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "speed.json"
    words = ["--batches", "1", "2", "--per-domain", "2", "--output", str(output)]
    assert run(folder, monkeypatch, words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == read_result(output)["numbers"]
    assert document["prompts"] == {"chat": 2, "maths": 2}
    for domain in ("chat", "maths", "all"):
        one, two = document["domains"][domain]["batch1"], document["domains"][domain]["batch2"]
        assert set(one) == {"transformers", "lookup", "ar", "lossless"}
        assert set(two) == {"transformers", "ar", "lossless"}
        assert one["transformers"]["tokens_per_step"] == 1
        assert one["ar"]["tokens_per_step"] == two["ar"]["tokens_per_step"] == 1
        assert one["lossless"]["tokens_per_step"] > 1
        assert one["lookup"]["tokens"] == one["transformers"]["tokens"] == one["ar"]["tokens"]
        assert one["lossless"]["over_transformers"]["processor"] > 0
        assert one["transformers"]["same_as_ar"] == 1


def test_groups_are_filled_up() -> None:
    assert benchmark.groups_of([(1,), (2,), (3,)], 2) == [[(1,), (2,)], [(3,), (1,)]]
    assert benchmark.groups_of([(1,)], 3) == [[(1,), (1,), (1,)]]


def test_answers_end_with_their_end_token() -> None:
    assert benchmark.up_to_end([5, 6, 0, 9, 9], frozenset({0})) == (5, 6, 0)
    assert benchmark.up_to_end([5, 6], frozenset({0})) == (5, 6)


def test_ratios_are_medians_of_groups() -> None:
    def runs(*seconds: float) -> list[object]:
        return [benchmark.Run([(1, 2)], 2, each, each) for each in seconds]

    found = benchmark.ratio(runs(1, 1, 1), runs(2, 4, 3))
    assert found == {"wall": 3, "processor": 3, "least_processor": 2}


def test_without_a_file_the_questions_are_asked() -> None:
    decoder = argparse.Namespace(tokenizer=byte_tokenizer())
    flags = argparse.Namespace(prompts=None, per_domain=2, domains=None)
    assert {k: len(v) for k, v in benchmark.domains_of(decoder, flags).items()} == {"chat": 2}


def test_a_domain_that_is_not_there_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, monkeypatch, ["--domains", "law"]) == 2
    assert "no prompt is of the domain law: there are chat, maths" in capsys.readouterr().err
