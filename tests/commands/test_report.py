"""The report command: its page's name, and what it needs."""

from pathlib import Path

import pytest

from helpers.reports import write, write_runs
from lightstride.config import ReportConfig
from lightstride.errors import ConfigError, DataError
from lightstride.report.facts import read_folders


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path)


def test_a_search_alone_is_not_a_report(runs: Path) -> None:
    empty = runs / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no result\.json in"):
        read_folders([str(empty)])
    with pytest.raises(DataError, match="is no folder"):
        read_folders([str(runs / "nowhere")])


def test_half_a_result_is_named(tmp_path: Path) -> None:
    write(
        tmp_path, "prune", {"dense": {"perplexity": 9.0}, "sizes": []}, model="m", calibration="c"
    )
    with pytest.raises(
        DataError, match=r"result\.json is no whole result of prune: .*`parameters`"
    ):
        read_folders([str(tmp_path)])


@pytest.mark.parametrize(
    ("output", "page"),
    [("report", "report.html"), ("a/1.5", "a/1.5.html"), ("x.html", "x.html"), ("x.HTM", "x.HTM")],
)
def test_a_page_ends_in_html(output: str, page: str) -> None:
    assert ReportConfig(folder=("runs",), output=output).page == Path(page)


def test_a_report_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ReportConfig(folder=())
