"""The picture of a recovery: what was measured, what was foretold, and a result that is damaged."""

from pathlib import Path

import pytest

from helpers.reports import write
from lightstride.errors import DataError
from lightstride.report.facts import read_folders
from lightstride.report.learning import learning_pictures

NUMBERS = {
    "perplexity": 20.0,
    "seconds": 600.0,
    "evaluations": [
        {"step": 0, "seconds": 0.0, "nll": 3.4},
        {"step": 9, "seconds": 90, "nll": 3.1},
    ],
    "forecast": {"perplexity": 20.5, "low": 19.0, "high": 21.0},
}


def test_it_tells_the_way_and_the_forecast(tmp_path: Path) -> None:
    write(tmp_path / "recovered", "recover", NUMBERS)
    write(tmp_path / "quick", "recover", {**NUMBERS, "forecast": None})
    quick, slow = learning_pictures(read_folders([str(tmp_path)]))
    assert slow.alt == "Perplexity went from 29.96 to 20.00 in 10.0 minutes; 20.50 was foretold."
    assert "foretold" not in quick.alt
    assert slow.png.startswith(b"\x89PNG")


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    write(tmp_path, "recover", {**NUMBERS, "evaluations": [{"seconds": 1}]})
    with pytest.raises(DataError, match="no whole result of recover"):
        learning_pictures(read_folders([str(tmp_path)]))
