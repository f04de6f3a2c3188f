"""benchmarks/exact.py on a toy: what it compares, and when it stops."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from helpers.smash_toys import sharp, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.results import read_result

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
specification = importlib.util.spec_from_file_location("exact_benchmark", FOLDER / "exact.py")
assert specification is not None
assert specification.loader is not None
benchmark = importlib.util.module_from_spec(specification)
sys.modules["exact_benchmark"] = benchmark
specification.loader.exec_module(benchmark)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The flags of a run on a smashed model, with prompts of two domains."""
    base = sharp(tiny_llama(tied=False))
    save_checkpoint(base, byte_tokenizer(), tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    save_checkpoint(toy(base), byte_tokenizer(), tmp_path / "smashed")
    lines = [{"domain": d, "prompt": f"{d} {n}"} for n in range(3) for d in ("chat", "maths")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
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
