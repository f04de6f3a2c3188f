"""Healing as a part of pruning; the loop has tests of its own in tests/recover."""

import json
from pathlib import Path

import pytest

from helpers.healing import WINDOWS, cut, distance
from helpers.prune_runs import config_of, finish, make_inputs
from helpers.toys import tiny_llama
from lightstride.config import PruneConfig
from lightstride.errors import ConfigError
from lightstride.models.families.registry import adapter_for
from lightstride.prune.heal import Healing, heal


def test_healing_is_passes_of_recovery(tmp_path: Path) -> None:
    dense = tiny_llama()
    smaller = cut(dense)
    before = distance(dense, smaller, WINDOWS)
    healing = Healing(passes=4, learning_rate=3e-3, step_tokens=96)
    progress = heal(smaller, dense, adapter_for(dense.config), WINDOWS, healing, tmp_path)
    assert progress.step == 12
    assert distance(dense, smaller, WINDOWS) < 0.8 * before


def test_prune_heals_and_says_what_it_was_before(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    quick = {"sparsity": (0.5,), "search": "none", "heal": 2, "heal_rate": 1e-3}
    config = config_of(tmp_path, "healed", **quick)
    finish(config)
    finish(config_of(tmp_path, "plain", **{**quick, "heal": 0}))
    healed, plain = (
        json.loads((tmp_path / name / "result.json").read_text())["numbers"]["sizes"][0]
        for name in ("healed", "plain")
    )
    assert healed["unhealed"] == pytest.approx(plain["perplexity"], rel=1e-6)
    assert healed["perplexity"] != pytest.approx(plain["perplexity"], rel=1e-3)
    assert "unhealed" not in plain
    assert not list((tmp_path / "healed.work").glob("healing*"))


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    quick = {"sparsity": (0.5,), "search": "none", "heal": 1, "heal_rate": 1e-3}
    found = []
    for ranks in (1, 2):
        finish(config_of(tmp_path, f"ranks-{ranks}", **quick), ranks)
        result = json.loads((tmp_path / f"ranks-{ranks}" / "result.json").read_text())
        found.append(result["numbers"]["sizes"][0]["perplexity"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(("flag", "value"), [("heal", -1), ("heal_rate", 0.0)])
def test_bad_numbers_are_refused(flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match="--heal"):
        PruneConfig(model="m", output="o", sparsity=(0.5,), **{flag: value})
