"""The way of a run follows its limits, and all ways find the same plan and weights."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.prune_runs import config_of, finish, make_inputs
from helpers.toys import tiny_llama
from lightstride.commands.prune import prune
from lightstride.commands.pruning import setup
from lightstride.commands.pruning.count import count_run, way_of
from lightstride.config import PruneConfig
from lightstride.config.values import parse_size
from lightstride.errors import ConfigError, ModelError
from lightstride.prune.ways import WAYS, Room, Way, footprint_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy of many blocks in several files, and a text."""
    path = tmp_path_factory.mktemp("runs")
    make_inputs(path)
    model = tiny_llama(num_layers=12, num_channels=128)
    (path / "model" / "model.safetensors").unlink()
    model.save_pretrained(path / "model", max_shard_size="200KB")
    assert len(list((path / "model").glob("*.safetensors"))) > 3
    return path


def memory_of(config: PruneConfig, way: Way) -> int:
    """What a run takes in one of the ways."""
    run = count_run(config.resolved())
    size = footprint_of(way, run.runner, config.sparsity, 0, Room(), run.held_out_tokens)
    return max(size.memory.values())


def config_for(folder: Path, way: Way, **changes: object) -> PruneConfig:
    """A run whose memory is just enough for one of the ways."""
    values: dict[str, object] = {"sparsity": (0.5,), "search_tokens": 2048, **changes}
    config = config_of(folder, way, **values)
    return config_of(folder, way, **values, memory=f"{memory_of(config, way)}B")


def test_ways_are_ordered_by_memory(folder: Path) -> None:
    sizes = [memory_of(config_for(folder, way), way) for way in WAYS]
    assert sizes == sorted(sizes, reverse=True)
    for way in WAYS:
        assert way_of(count_run(config_for(folder, way).resolved())) == way


def test_all_ways_find_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Way] = []
    original = setup.open_source

    def note(config: PruneConfig, way: Way) -> object:
        opened.append(way)
        return original(config, way)

    monkeypatch.setattr(setup, "open_source", note)
    results = [prune(config_for(folder, way)) for way in WAYS]
    assert opened == list(WAYS)
    first = folder / WAYS[0]
    for way, result in zip(WAYS[1:], results[1:], strict=True):
        other = folder / way
        assert plan_in(other) == plan_in(first)
        assert (other / "config.json").read_bytes() == (first / "config.json").read_bytes()
        mine, theirs = (load_file(where / "model.safetensors") for where in (other, first))
        assert mine.keys() == theirs.keys()
        assert all((mine[name] == tensor).all() for name, tensor in theirs.items())
        for size, expected in zip(sizes_of(result), sizes_of(results[0]), strict=True):
            assert size.pop("perplexity") == pytest.approx(expected["perplexity"], rel=1e-6)
            for key in ("parameters", "bytes", "plan", "sparsity", "block_parameters"):
                assert size[key] == expected[key]
        assert not list(Path(f"{other}.work").glob("activations*"))


def plan_in(folder: Path) -> object:
    return json.loads((folder / "lightstride.json").read_text())["plan"]


def sizes_of(result: object) -> list[dict[str, object]]:
    numbers = result["numbers"]  # type: ignore[index]
    return [dict(numbers["dense"]), *map(dict, numbers["sizes"])]


def test_too_little_is_refused_with_the_least_that_works(folder: Path) -> None:
    config = config_of(folder, "refused", memory="1MB")
    with pytest.raises(ConfigError, match=r"the least that works is [\d.]+GiB") as caught:
        prune(config)
    least = str(caught.value).rsplit(" ", 1)[1]
    enough = config_of(folder, "refused", memory=least)
    assert way_of(count_run(enough.resolved())) in WAYS
    assert parse_size("--memory", least) >= memory_of(enough, "spilled")
    assert not Path(config.work_folder).exists()


@pytest.mark.parametrize("changes", [{"heal": 1}, {"calibration": "self"}])
def test_what_needs_the_whole_model_is_said(folder: Path, changes: dict[str, object]) -> None:
    least = memory_of(config_of(folder, "a", **changes), "spilled")
    with pytest.raises(ConfigError, match="needs the whole model in memory"):
        way_of(count_run(config_of(folder, "a", memory=f"{least}B", **changes).resolved()))


def test_an_accelerators_limit_needs_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is none here"):
        prune(config_of(folder, "a", device_memory="1GiB"))
    with pytest.raises(ConfigError, match="such as 20GiB"):
        config_of(folder, "a", memory="20")


def test_a_shard_that_went_is_put_back_and_the_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    changes = {"model": str(tmp_path / "model"), "output": str(tmp_path / "cut")}
    config = config_for(folder, "streamed", **changes)
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    original = setup.open_source

    def truncated(config: PruneConfig, way: Way) -> object:
        source = original(config, way)
        shard.write_bytes(whole[:-1000])
        return source

    monkeypatch.setattr(setup, "open_source", truncated)
    with pytest.raises(ModelError, match=r"truncated.*--resume"):
        prune(config)
    monkeypatch.undo()
    shard.write_bytes(whole)
    prune(config_for(folder, "streamed", **changes, resume=True))
    assert (tmp_path / "cut" / "lightstride.json").exists()


def test_two_processes_read_blocks_and_find_the_same(folder: Path) -> None:
    config = config_for(folder, "spilled", output=str(folder / "two"))
    finish(config, num_ranks=2)
    alone = config_for(folder, "spilled", output=str(folder / "one"))
    finish(alone)
    assert plan_in(folder / "two") == plan_in(folder / "one")
    mine, theirs = (load_file(folder / name / "model.safetensors") for name in ("two", "one"))
    assert all((mine[name] == tensor).all() for name, tensor in theirs.items())
