"""benchmarks/plot_search.py: what it says of made-up searches, and what it refuses."""

import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from helpers.benchmark import load_benchmark
from lightstride.errors import DataError
from lightstride.results import write_result

plot_search = load_benchmark("plot_search")

Points = list[dict[str, float]]


def points(*rows: tuple[float, float, float]) -> Points:
    names = ("tokens", "seconds", "unseen")
    return [{**dict(zip(names, row, strict=True)), "fitness": 1.0} for row in rows]


FAST = points((50_000, 20, 0.9), (90_000, 45, 0.7), (120_000, 61, 0.65))
PAPER = points((400_000, 100, 0.95), (1_000_000, 500, 0.6))


def result(folder: Path, **numbers: object) -> Path:
    path = folder / "compare.json"
    write_result(path, kind="search", numbers=numbers, config={}, command=[], seed=0, data={})
    return path


def test_shares_are_those_of_the_last_plan_within_a_tenth(tmp_path: Path) -> None:
    found = plot_search.read_comparison(result(tmp_path, centre=1.0, fast=FAST, paper=PAPER))
    assert found.share("tokens") == pytest.approx((1 - 0.7) / (1 - 0.6))
    assert found.share("seconds") == pytest.approx((1 - 0.7) / (1 - 0.6))
    slow = points((200_000, 20, 0.9), (300_000, 51, 0.6))
    found = plot_search.read_comparison(result(tmp_path, centre=1.0, fast=slow, paper=PAPER))
    assert found.share("tokens") == 0
    assert found.share("seconds") == pytest.approx(0.25)


def test_draws_one_picture_and_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result(tmp_path, centre=1.0, fast=FAST, paper=PAPER, candidate={"seconds": 1.0})
    monkeypatch.setattr(sys, "argv", ["plot_search", str(path), str(tmp_path / "picture.png")])
    plot_search.main()
    assert capsys.readouterr().out == (
        "The fast preset has 75% of the paper preset's gain "
        "at 1/10 of its tokens, 75% at 1/10 of its time\n"
    )
    pixels = imread(tmp_path / "picture.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 700
    assert pixels.std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.json", "picture.png"]


@pytest.mark.parametrize(
    "numbers",
    [
        {"centre": 1.0, "fast": FAST},
        {"centre": 1.0, "fast": [], "paper": PAPER},
        {"centre": 1.0, "fast": FAST, "paper": [{"tokens": 1}]},
        {"runs": []},
    ],
)
def test_other_results_are_refused(numbers: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compares no searches"):
        plot_search.read_comparison(result(tmp_path, **numbers))


def test_no_gain_has_no_share(tmp_path: Path) -> None:
    path = result(tmp_path, centre=0.6, fast=FAST, paper=PAPER)
    with pytest.raises(DataError, match="gained nothing"):
        plot_search.read_comparison(path)
