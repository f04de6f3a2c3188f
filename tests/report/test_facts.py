"""What a report reads: searches, plans, means of the same items."""

from pathlib import Path

import pytest

from helpers.reports import judged, write, write_runs
from lightstride.errors import DataError
from lightstride.report.charts import search_curve
from lightstride.report.facts import read_folders, read_search, shorten


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path)


def test_a_search_record_is_read_up_to_where_it_was_cut_off(runs: Path, tmp_path: Path) -> None:
    evaluations = list(read_search(runs / "pruned" / "search.jsonl"))
    assert len(evaluations) == 2 * 12 * 11
    dots, best = search_curve(evaluations, "round-2-25")
    assert (len(dots), len(best)) == (36, 12)
    assert best[-1][1] == min(y for _, y in dots[-3:])
    assert best[-1][0] == pytest.approx(2 * 12 * (8 * 1024 + 3 * 8192) / 1e6)
    (tmp_path / "bad.jsonl").write_text('{"fitness": "low"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl line 1: .*float"):
        list(read_search(tmp_path / "bad.jsonl"))


def test_means_compare_the_same_items(tmp_path: Path) -> None:
    for name, right in (("large", "1100"), ("small", "10")):
        whole = judged(name, 100, 20.0, 0.5)
        share = right.count("1") / len(right)
        task = {"value": share, "stderr": 0.1, "num_items": len(right), "items": right}
        numbers = {"model": {**whole, "tasks": {"piqa": task}}}
        write(tmp_path / name, "evaluate", numbers, model=name, perplexity="text.txt")
    facts = read_folders([str(tmp_path)])
    accuracies = {model.source: model.accuracy for model in facts.models}
    assert accuracies == {"large": 1.0, "small": 0.5}
    assert {model.source: model.tasks["piqa"][0] for model in facts.models} == {
        "large": 0.5,
        "small": 0.5,
    }


def test_a_long_name_is_cut_in_front() -> None:
    assert shorten("/models/" + "x" * 500 + "end") == "…" + "x" * 36 + "end"
    assert shorten("/home/models/small") == "models/small"
