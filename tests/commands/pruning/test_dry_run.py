"""`lightstride prune --dry-run`: what a run costs, from config.json alone."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from helpers.prune_runs import config_of, make_inputs
from lightstride.cli import main
from lightstride.commands.prune import prune
from lightstride.commands.pruning.dry_run import Forecast, dry_run
from lightstride.config import PruneConfig
from lightstride.errors import ConfigError, WorkError
from lightstride.prune.footprint import Footprint, disk_bytes
from lightstride.prune.forecast import Operations, Rates, forecast
from lightstride.prune.rounds import RoundRunner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy and a text; `bare` is the toy without its weights."""
    path = tmp_path_factory.mktemp("runs")
    make_inputs(path)
    shutil.copytree(path / "model", path / "bare")
    (path / "bare" / "model.safetensors").unlink()
    return path


def dry(folder: Path, **changes: object) -> PruneConfig:
    """A dry run of the toy without its weights."""
    bare = {"model": str(folder / "bare"), "dry_run": True}
    return config_of(folder, "dry", **{**bare, **changes})


def operations_of(document: Mapping[str, object]) -> dict[str, Operations]:
    stages = document["operations"]
    assert isinstance(stages, dict)
    return {stage: Operations(**counts) for stage, counts in stages.items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"search": "none", "sparsity": (0.5,)}, {"preset": "paper", "heal": 1, "rounds": 1}],
    ids=["fast", "none", "paper and healing"],
)
def test_counts_what_the_run_itself_counts(
    folder: Path, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[dict[str, Operations]] = []

    def note(*arguments: object) -> dict[str, Operations]:
        counted.append(forecast(*arguments))  # type: ignore[arg-type]
        return counted[-1]

    monkeypatch.setattr("lightstride.commands.prune.forecast", note)
    prune(config_of(folder, "run", output=str(tmp_path / "run"), **changes))
    said = prune(dry(folder, machine=("h100",), **changes))
    assert [operations_of(said)] == counted


def test_the_disk_is_what_the_run_asks_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def check(config: PruneConfig, runner: RoundRunner) -> None:
        asked.append(disk_bytes(runner, config.sparsity, config.heal))

    monkeypatch.setattr("lightstride.commands.pruning.setup.check_disk", check)
    prune(config_of(folder, "run", output=str(tmp_path / "run"), search="none"))
    [machine] = prune(dry(folder, search="none", machine=("laptop",)))["machines"]  # type: ignore[misc]
    assert [machine["footprint"]["disk"]] == asked


def test_all_machines_are_told_of_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    said = prune(dry(folder, machine=("here", "h100", "8xmi300x", "laptop")))
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:6]] == ["here", "h100", "8xmi300x", "laptop"]
    assert "measured" in lines[6]
    machines = said["machines"]
    assert isinstance(machines, list)
    for machine in machines:
        assert machine["total_seconds"] == sum(machine["seconds"].values()) > 0
        assert min(machine["rates"].values()) > 0
        assert machine["too_little"] == []
    assert [bool(machine["footprint"]["device_memory"]) for machine in machines[1:]] == [
        True,
        True,
        False,
    ]


def test_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", str(folder / "bare"), "-o", str(folder / "dry"), "--sparsity", "0.3"]
    texts = ["--calibration", str(folder / "text.jsonl"), "--calibration-tokens", "512"]
    sizes = ["--search-tokens", "512", "--held-out-tokens", "256", "--window", "32"]
    flags = ["--multiple", "8", "--dry-run", "--json"]
    assert main([*command, *texts, *sizes, *flags]) == 0
    [machine] = json.loads(capsys.readouterr().out)["machines"]
    assert machine["machine"] == "here"


def test_text_of_the_models_own_is_not_made(folder: Path) -> None:
    said = prune(dry(folder, calibration="self", machine=("h100",)))
    assert operations_of(said) == operations_of(prune(dry(folder, machine=("h100",))))


def test_a_folder_of_a_killed_run_is_refused_but_for_resume(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "work.json").write_text("{}")
    with pytest.raises(WorkError, match="unfinished run"):
        prune(dry(folder, work=str(tmp_path), machine=("h100",)))
    prune(dry(folder, work=str(tmp_path), machine=("h100",), resume=True))


REFUSED: Mapping[str, tuple[dict[str, object], str]] = {
    "a machine without --dry-run": ({"dry_run": False, "machine": ("h100",)}, "--dry-run"),
    "an unknown machine": ({"machine": ("h200",)}, "laptop"),
    "a machine twice": ({"machine": ("h100", "h100")}, "each name once"),
    "a budget that must be timed": ({"budget": "latency"}, "times no widths"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_settings(folder: Path, name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        dry(folder, **changes)


def test_a_block_that_does_not_fit_is_not_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightstride.commands.pruning.dry_run.free_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="name another --machine"):
        dry_run(dry(folder).resolved())
    dry_run(dry(folder, machine=("laptop",)).resolved())


def test_a_machine_that_is_too_small_is_told() -> None:
    small = Footprint(memory={"a": 5, "b": 9}, device_memory={}, disk=3, reads=1)
    found = Forecast(
        machine="here",
        title="",
        assumed="",
        rates=Rates(forward=1, gram=1, solve=1),
        seconds={"a": 1.0},
        way="resident",
        footprint=small,
        free={"memory": 8, "device memory": None, "disk": 3},
    )
    assert found.too_little == ["memory"]
    assert found.to_json()["footprint"] == asdict(small)
