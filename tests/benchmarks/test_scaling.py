"""benchmarks/scaling.py --ways: a toy is made, run in memory and block by block, and compared."""

import json
import os
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark
from lightstride.models.opening.load import load_config
from lightstride.models.opening.shards import Shards

scaling = load_benchmark("scaling")


@pytest.mark.slow
def test_a_toy_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LIGHTSTRIDE_CACHE", raising=False)
    sizes = ["search_tokens=2048", "calibration_tokens=2048", "held_out_tokens=1024"]
    words = ["scaling.py", "--ways", "tiny", "--folder", str(tmp_path), "--set", *sizes]
    monkeypatch.setattr(sys, "argv", words)
    scaling.main()
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["same_plan"]
    assert row["same_weights"]
    for way in ("resident", "streamed"):
        measured = row["ways"][way]
        said, ratio = measured["foreseen"], measured["ratio"]
        assert 0 < measured["peak_bytes"] < 1.2 * max(said["memory"].values())
        stages = {"supernets", "searches", "closing rounds", "perplexities"}
        assert set(said["seconds"]) == stages
        for clock in ("clock", "processor"):
            assert set(ratio[clock]) == stages | {"all"}
            assert min(ratio[clock].values()) > 0
        assert ratio["disk"] == measured["disk_bytes"] / said["disk"]
        assert 0.5 < ratio["disk"] < 1.5
        assert ratio["memory"] == pytest.approx(
            measured["peak_bytes"] / max(said["memory"].values())
        )


def test_disk_counts_files_with_and_without_a_name(tmp_path: Path) -> None:
    disk_of = sys.modules["ways"].disk_of
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "named").write_bytes(b"1234")
    before = disk_of(os.getpid(), [tmp_path])
    with (tmp_path / "nameless").open("w+b", buffering=0) as nameless:
        (tmp_path / "nameless").unlink()
        nameless.write(b"123456")
        assert disk_of(os.getpid(), [tmp_path]) == before + 6
    assert disk_of(os.getpid(), [tmp_path]) == before


def test_random_models_are_whole_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = sys.modules["ways"]
    monkeypatch.delenv("LIGHTSTRIDE_CACHE", raising=False)
    monkeypatch.setattr(ways, "SHARD", 1 << 19)
    folder = ways.make_model("tiny", tmp_path / "tiny")
    shards = Shards.open(folder)
    assert len({place.path for place in shards.places.values()}) > 2
    config = load_config(str(folder), str(folder))
    assert config.num_hidden_layers == 12
    assert shards.read("model.norm.weight").eq(1).all()
    assert ways.make_model("tiny", tmp_path / "tiny") == folder
