"""benchmarks/recover.py on a toy: a row for each method and time, and nothing made twice."""

import json
import sys
from pathlib import Path
from random import Random

import pytest

from helpers.benchmark import load_benchmark
from helpers.prune_runs import config_of, make_inputs
from lightstride.commands.prune import prune
from lightstride.results import read_result

WORDS = ("a", "light", "on", "the", "harbor", "and", "lantern", "is", "red")
benchmark = load_benchmark("recover")


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run over a toy cut by half."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["judge"], "WINDOW", 64)
    make_inputs(tmp_path)
    prune(config_of(tmp_path, "cut", sparsity=(0.5,), search="none"))
    random = Random(0)
    lines = [" ".join(random.choice(WORDS) for _ in range(30)) for _ in range(200)]
    Path("words.txt").write_text("\n".join(lines))
    Path("words.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    words = "--model model --cuts 50=cut --minutes 0.02 --methods ours depth --yardsticks q8_0 "
    words += "--text words.jsonl --tokens 8192 --held-out-tokens 512 --test words.txt "
    words += "--num-passages 4 --every 40 "
    return [*words.split(), "--fidelity-windows", "1", "--work", "work", "--output", "found.json"]


def run(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    monkeypatch.setattr(sys, "argv", ["recover.py", *flags])
    benchmark.main()
    return read_result("found.json")["numbers"]["rows"]


def test_every_row_is_measured_once(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(flags, monkeypatch)
    assert list(rows) == [
        "dense",
        "q8_0",
        *(f"{method}-50-{minutes}" for method in ("ours", "depth") for minutes in ("0", "0.02")),
    ]
    assert rows["depth-50-0"]["sparsity"] == 0.5
    assert rows["ours-50-0"]["learning"] is None
    assert rows["ours-50-0.02"]["learning"]["tokens"] > 0
    assert rows["q8_0"]["fidelity"]["mean"] < rows["ours-50-0"]["fidelity"]["mean"]
    kept = Path("work", "rows", "ours-50-0.json")
    kept.write_text(json.dumps({"perplexity": 1.0}))
    again = run(flags, monkeypatch)["ours-50-0"]
    assert again["perplexity"] == 1.0  # kept, and what is missing added
    assert again["fidelity"] == rows["ours-50-0"]["fidelity"]
