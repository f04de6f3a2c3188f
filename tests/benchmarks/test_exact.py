"""benchmarks/exact.py on a toy: what it compares, and when it stops."""

import json
import sys
from pathlib import Path

import pytest
import torch

from helpers.benchmark import load_benchmark, save_smashed_and_prompts
from lightstride.results import read_result

benchmark = load_benchmark("exact")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The flags of a run on a smashed model, with prompts of two domains."""
    save_smashed_and_prompts(tmp_path)
    paths = ["--model", tmp_path / "smashed", "--prompts", tmp_path / "prompts.jsonl"]
    return [*map(str, paths), "--new-tokens", "12", "--rows", "2"]


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="no bfloat16 kernel on this machine",
)
def test_exact_answers_are_counted_until_the_time_is_over(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "exact.json"
    for more, count in ([], 6), (["--minutes", "0"], 2):
        argv = ["exact.py", *words, "--rounded", "--output", str(output), *more]
        monkeypatch.setattr(sys, "argv", argv)
        assert benchmark.main() == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document == read_result(output)["numbers"]
        assert document["exact"]["prompts"] == document["exact"]["same"] == count
        assert document["exact"]["differing"] == []
        assert document["exact"]["tokens_per_step"] > 1
        assert set(document["exact"]["processor_seconds"]) == {"ar", "lossless"}
        assert document["rounded"]["prompts"] == count


def test_a_domain_that_is_not_there_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["exact.py", *words, "--domains", "law"])
    assert benchmark.main() == 2
    assert capsys.readouterr().err.startswith("error: no prompt is of the domain law")


def test_domains_take_turns() -> None:
    domains = {"chat": [(1,), (2,), (3,)], "code": [(7,)]}
    assert benchmark.in_turn(domains) == [(1,), (7,), (2,), (3,)]
    assert list(benchmark.parts_of([(1,), (2,), (3,)], 2)) == [[(1,), (2,)], [(3,)]]
