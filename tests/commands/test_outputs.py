"""Two runs that write the same folder: one wins, the other is told who writes."""

from pathlib import Path

import pytest

from helpers.cli_runs import run_together
from helpers.tiny_commands import TINY, make_sources

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    make_sources(path)
    return path


def pair(name: str, sources: Path, folder: Path) -> None:
    """Run a command twice at once; exactly one does what it should."""
    folder.mkdir()
    ended = run_together([TINY[name].arguments(sources, folder)] * 2, folder)
    assert sorted(str(each.code) for each in ended) == ["0", "2"], [e.said for e in ended]
    winner, loser = sorted(ended, key=lambda each: each.code or 0)
    assert f"is being written by process {winner.process} on " in loser.error
    assert not list(folder.glob(".*")), "a lock or a half-written file is left"


@pytest.mark.parametrize("name", ["prune", "export", "evaluate"])
def test_one_of_two_is_refused(name: str, sources: Path, tmp_path: Path) -> None:
    pair(name, sources, tmp_path / name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_pairs(sources: Path, tmp_path: Path) -> None:
    for number in range(30):
        pair(list(TINY)[number % len(TINY)], sources, tmp_path / str(number))
