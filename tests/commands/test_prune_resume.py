"""A run that is killed and resumed, or shared out, finds what one process finds at once."""

import json
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from helpers.prune_runs import config_of, finish, make_inputs, plans_in, start
from lightstride.commands.prune import prune
from lightstride.errors import OutputError, WorkError
from lightstride.prune.cut.supernet import INDEX

pytestmark = pytest.mark.timeout(400)  # processes of their own import torch, slowly if others work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    make_inputs(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, object]:
    """The plans of a run that nothing interrupts."""
    return finish(config_of(folder, "whole"))


def kill_and_resume(folder: Path, name: str, num_kills: int) -> dict[str, object]:
    """The plans of a run that is killed at random moments."""
    random = Random(0)
    config = config_of(folder, name)
    kills = 0
    while kills < num_kills:
        [process] = start(config)
        time.sleep(random.uniform(0.02, 1.2))
        kills += process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        config = replace(config, resume=(Path(config.work_folder) / "work.json").exists())
    return plans_in(config) if process.exitcode == 0 else finish(config)


def test_kill_and_resume_at_some_moments(folder: Path, whole: dict[str, object]) -> None:
    assert kill_and_resume(folder, "killed", 5) == whole
    assert not list(folder.glob("killed/**/.*"))


@pytest.mark.slow
def test_kill_and_resume_at_twenty_moments(folder: Path, whole: dict[str, object]) -> None:
    for attempt in range(4):
        assert kill_and_resume(folder, f"killed-{attempt}", 5) == whole


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_find_the_same_plans(folder: Path, whole: dict[str, object], num_ranks: int) -> None:
    config = config_of(folder, f"ranks-{num_ranks}")
    assert finish(config, num_ranks) == whole
    result = json.loads((Path(config.output) / "result.json").read_text())
    assert [size["name"] for size in result["numbers"]["sizes"]] == ["30", "50"]


def stopped(folder: Path, name: str) -> None:
    """Leave the work folder of a run that has only begun."""
    config = config_of(folder, name)
    [process] = start(config)
    while not (Path(config.work_folder) / "work.json").exists():
        time.sleep(0.02)
    process.kill()
    process.join()


def test_work_folders_of_other_runs_are_refused(folder: Path) -> None:
    stopped(folder, "begun")
    with pytest.raises(WorkError, match="go on with it by --resume"):
        prune(config_of(folder, "begun"))
    with pytest.raises(WorkError, match="another run: seed, texts differ"):
        prune(config_of(folder, "begun", resume=True, seed=1))
    work = Path(config_of(folder, "begun").work_folder) / "work.json"
    document = json.loads(work.read_text())
    work.write_text(json.dumps({**document, "weights": "0"}))
    with pytest.raises(WorkError, match="its hash differs"):
        prune(config_of(folder, "begun", resume=True))
    del document["sha256"]  # as in folders of older versions
    work.write_text(json.dumps({**document, "weights": "0"}))
    with pytest.raises(WorkError, match="weights differ"):
        prune(config_of(folder, "begun", resume=True))
    work.write_text(json.dumps({**document, "version": 0}))
    with pytest.raises(WorkError, match="another version"):
        prune(config_of(folder, "begun", resume=True))
    work.write_text("{")
    with pytest.raises(WorkError, match="damaged"):
        prune(config_of(folder, "begun", resume=True))


def test_folders_with_other_things_are_refused(folder: Path) -> None:
    config = config_of(folder, "taken")
    Path(config.output).mkdir()
    (Path(config.output) / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty"):
        prune(config)
    elsewhere = config_of(folder, "free", work=config.output)
    with pytest.raises(OutputError, match="belongs to no run"):
        prune(elsewhere)
    assert (Path(config.output) / "thesis.txt").read_text() == "years of work"
    assert not (Path(elsewhere.output)).exists()


def test_a_supernet_of_another_model_is_refused(folder: Path) -> None:
    config = config_of(folder, "swapped", sparsity=(0.5,))
    [process] = start(config)
    index = Path(config.work_folder) / "round-1" / INDEX
    partial = index.parent.with_name("round-1.partial") / "started.json"
    while not (index.exists() or partial.exists()):
        time.sleep(0.01)
    process.kill()
    process.join()
    found = index if index.exists() else partial
    document = json.loads(found.read_text())
    found.write_text(json.dumps({**document, "model": "0" * 64}))
    with pytest.raises(WorkError, match=r"another run|damaged"):
        prune(replace(config, resume=True))
