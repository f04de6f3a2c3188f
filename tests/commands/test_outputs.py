"""Outputs: one writer each, checked before the work, and numbers that survive a bad one."""

import tempfile
from pathlib import Path

import pytest

from helpers.cli_runs import run_together
from helpers.processes import run_ranks
from helpers.tiny_commands import TINY, make_sources
from lightstride import cli, results
from lightstride.commands import bench, evaluate, prune
from lightstride.errors import OutputError
from lightstride.files import write_json
from lightstride.files.lock import locked
from lightstride.results import read_result

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


def refused(arguments: list[str]) -> None:
    """What every process of a second run ends in."""
    assert cli.main(arguments) == 2


def test_processes_of_one_run_share_a_lock_and_are_refused_together(
    sources: Path, tmp_path: Path
) -> None:
    arguments = TINY["prune"].arguments(sources, tmp_path)
    with locked(tmp_path / "out"):
        run_ranks(refused, 2, arguments)
    assert not list(tmp_path.iterdir())


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("the long work has begun")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate {s}/model --perplexity {s}/text.jsonl --against typo -o {o}/out", "typo"),
        ("evaluate {s}/model --perplexity nowhere.txt -o {o}/out", "nowhere.txt"),
        ("evaluate {s}/model --perplexity {s}/text.jsonl -o {s}/text.jsonl", "is a file"),
        ("evaluate {s}/model --perplexity {s}/text.jsonl -o {o}/text.txt/x", "a file stands"),
        ("bench {s}/model --against typo -o {o}/out", "typo"),
        ("bench {s}/model -o {s}/text.jsonl", "is a file"),
        ("prune {s}/model --sparsity 0.5 -o {o}/out --work {o}/out", "inside the other"),
        ("prune {s}/model --sparsity 0.5 -o {o}/out --work {o}/out/work", "inside the other"),
        ("smash {s}/chat -o {o}/out --work {o}/out/work", "inside the other"),
        ("smash {s}/chat -o {o}/out --answers {o}/out/answers", "inside the other"),
        ("smash {s}/chat -o {o}/out --answers {s}/chat", "it holds a model"),
        ("recover {s}/cuts/30 -o {o}/out --work {o}/out", "inside the other"),
        ("export {s}/model -o {o}/text.txt", "exists already"),
        ("export {s}/model -o {o}/nowhere/x.gguf", "is no folder"),
        ("report {s}/cuts -o {o}/text.txt/page.html", "a file stands"),
    ],
)
def test_outputs_are_refused_before_the_work(
    line: str,
    said: str,
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text("mine")
    for room, name in ((evaluate, "perplexity"), (bench, "measure"), (prune, "open_run")):
        monkeypatch.setattr(room, name, no_work)
    assert cli.main(line.format(s=sources, o=tmp_path).split()) == 2
    (error,) = [e for e in capsys.readouterr().err.splitlines() if "lightstride: error" in e]
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_what_was_measured_is_not_lost(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: str | Path, document: object) -> None:
        if Path(path).parent == tmp_path / "out":
            raise OutputError(f"cannot write {path}: no space left on the disk")
        write_json(path, document)

    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(results, "write_json", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    assert cli.main(TINY["evaluate"].arguments(sources, tmp_path)) == 2
    said = capsys.readouterr()
    assert "perplexity" in said.out
    (spare,) = (tmp_path / "spare").iterdir()
    assert f"no space left on the disk; what was measured is in {spare}" in said.err
    assert read_result(spare)["kind"] == "evaluate"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_pairs(sources: Path, tmp_path: Path) -> None:
    for number in range(30):
        pair(list(TINY)[number % len(TINY)], sources, tmp_path / str(number))
