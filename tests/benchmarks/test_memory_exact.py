"""benchmarks/memory_exact.py on a toy: what it compares, and where answers part."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.benchmark import load_benchmark, save_smashed_and_prompts
from lightstride.checkpoint import open_decoder
from lightstride.memory.cache import full_plan
from lightstride.memory.fitness import logits_of
from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import Keep
from lightstride.memory.plan_files import MemoryFile, write_plans
from lightstride.models.opening.load import load_model
from lightstride.results import read_result

benchmark = load_benchmark("memory_exact")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The flags of a run on a smashed model with a plan, and prompts of two domains."""
    save_smashed_and_prompts(tmp_path)
    full = full_plan(load_model(str(tmp_path / "base")))
    keeps = (Keep(0, 16), Keep(4, 16))
    plan = replace(full, blocks=tuple(keeps[: len(block)] for block in full.blocks))
    write_plans(tmp_path / "smashed", MemoryFile({0.5: plan}), {})
    paths = ["--model", tmp_path / "smashed", "--prompts", tmp_path / "prompts.jsonl"]
    return [*map(str, paths), "--new-tokens", "40", "--rows", "4"]


def test_lossless_on_a_plan_is_one_token_at_a_time(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "memory-exact.json"
    for more, count in ([], 6), (["--minutes", "0"], 4):
        argv = ["memory_exact.py", *words, "--output", str(output), *more]
        monkeypatch.setattr(sys, "argv", argv)
        assert benchmark.main() == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document == read_result(output)["numbers"]
        found = document["0.5"]
        assert found["prompts"] == found["same"] == count
        assert found["leads"] == []
        assert found["tokens"] == 40 * count
        assert found["tokens_per_step"] > 1
        assert found["same_as_full_cache"] < count
        assert set(found["processor_seconds"]) == {"ar", "lossless", "full"}


def test_a_lead_is_the_masked_texts(words: list[str], tmp_path: Path) -> None:
    decoder = open_decoder(str(tmp_path / "smashed"), kv=0.5)
    before = tuple(range(60, 100))
    with torch.inference_mode():
        model = decoder.model.base
        hidden_TD = masked_hidden(model, torch.tensor(before), decoder.memory.plan)
        logits_V = logits_of(model, hidden_TD)[-1]
    wanted = float(logits_V[7] - logits_V[9])
    assert abs(benchmark.lead(decoder, decoder.memory, before, 7, 9) - abs(wanted)) < 1e-5


def test_a_budget_that_is_not_there_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory_exact.py", *words, "--kv", "0.3"])
    assert benchmark.main() == 2
    assert capsys.readouterr().err.startswith("error: --kv 0.3 is not among")
