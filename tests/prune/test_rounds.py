"""Rounds: what is shared, what is measured last, what is stored."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from helpers.rounds import ADAPTER, MODEL, QUICK, TOKENS_NL, runner
from helpers.spaces import ffn_step
from lightstride.errors import BudgetError
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import Site
from lightstride.prune import rounds as rounds_module
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.cut.refit import prune_site
from lightstride.prune.cut.statistics import stream_blocks
from lightstride.prune.cut.supernet import Supernet
from lightstride.prune.rounds import RoundResult, RoundRunner
from lightstride.prune.space.plan import sparsity
from lightstride.prune.space.targets import Target
from lightstride.search.evaluation_log import read_evaluations
from lightstride.search.evolution import EvolutionSettings


def test_plans_of_several_sizes(tmp_path: Path) -> None:
    job = runner(tmp_path)
    found = job.plans((0.25, 0.5))
    for share, results in found.items():
        assert [result.round for result in results] == [1, 2]
        for result in results:
            true = sparsity(result.plan, job.space.geometry)
            assert share <= true < share + ffn_step(job.space) / job.dense_cost
    assert not list(tmp_path.glob("round-*/"))
    scopes = {record["scope"] for record in read_evaluations(tmp_path / "search.jsonl")}
    assert scopes == {"round-1-25", "round-1-50", "round-2-25", "round-2-50"}


def test_the_first_supernet_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    original = RoundRunner.supernet_for

    def build(self: RoundRunner, folder: Path, *rest: object) -> Supernet:
        built.append(folder.name)
        return original(self, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RoundRunner, "supernet_for", build)
    runner(tmp_path).plans((0.25, 0.5))
    assert built == ["round-1", "round-2-25", "round-2-50"]


def test_finished_rounds_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runner(tmp_path).plans((0.5,))

    def fail(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(RoundRunner, "supernet_for", fail)
    assert runner(tmp_path).plans((0.5,)) == first


def test_one_size_alone_and_among_others_start_alike(tmp_path: Path) -> None:
    together = runner(tmp_path / "a", num_rounds=1).plans((0.4, 0.5))
    alone = runner(tmp_path / "b", num_rounds=1).plans((0.5,))
    assert alone[0.5][0].plan.shapes.keys() == together[0.5][0].plan.shapes.keys()
    assert alone[0.5][0].fitness == pytest.approx(together[0.5][0].fitness, rel=0.5)


def test_rounds_halve_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Fraction] = []
    original = rounds_module.narrow

    def narrow(*arguments: object) -> object:
        step = arguments[2]
        assert isinstance(step, Fraction)
        steps.append(step)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds_module, "narrow", narrow)
    runner(tmp_path, num_rounds=4).plans((0.5,))
    assert steps == [Fraction(1, 8), Fraction(1, 16), Fraction(1, 32), Fraction(1, 64)]


def test_closing_refits_on_the_pruned_stream(tmp_path: Path) -> None:
    job = runner(tmp_path, weigh_tokens=False, correction=0.0)
    plan = job.centre(0.5)
    levels = job.closing_round(0.5, plan)
    assert {site: level.kept.shape for site, level in levels.items()} == dict(plan.shapes)

    expected = {}

    def visit(site: Site, statistics: object) -> object:
        name = {"attention": "output", "ffn": "down"}[site.kind]
        weight = statistics.weights[name]  # type: ignore[attr-defined]
        dense = job.space.geometry.shape(site)
        [level] = prune_site(weight, statistics.gram, [plan.shapes[site]], dense)  # type: ignore[attr-defined]
        expected[site] = level
        return level

    stream_blocks(Resident(MODEL), job.calibration_NL, visit)  # type: ignore[arg-type]
    for site, level in levels.items():
        assert level.kept == expected[site].kept
        torch.testing.assert_close(level.output_OK, expected[site].output_OK, rtol=0.02, atol=0.02)


def test_later_rounds_start_from_what_was_learned(tmp_path: Path) -> None:
    job = runner(tmp_path)
    first, second = job.plans((0.5,))[0.5]
    assert set(first.slopes) == set(job.space.sites)
    assert min(first.slopes.values()) >= 0
    assert len({round(slope, 3) for slope in first.slopes.values()}) > 2
    records = read_evaluations(tmp_path / "search.jsonl")
    probed = {record["scope"] for record in records if record.get("role") == "probe"}
    assert probed == {"round-1-50"}
    assert first.tokens > second.tokens
    assert RoundResult.from_json(json.loads(json.dumps(second.to_json()))) == second


@pytest.mark.parametrize(
    "search",
    [EvolutionSettings(generations=2, offspring=4, tokens=(32, 64), survivors=(2, 1)), QUICK],
)
@pytest.mark.parametrize("split", ["free", "fixed"])
def test_both_searches_and_splits(tmp_path: Path, search: object, split: str) -> None:
    job = runner(tmp_path, search=search, split=split, num_rounds=1)
    [result] = job.plans((0.5,))[0.5]
    assert job.space.total(result.plan) <= job.limit(0.5)


def test_without_a_search_nothing_is_built(tmp_path: Path) -> None:
    job = runner(tmp_path, search=None)
    assert job.plans((0.5,)) == {0.5: []}
    assert not list(tmp_path.iterdir())


def test_even_targets_race_even_plans(tmp_path: Path) -> None:
    job = runner(tmp_path, Target(name="even", channel_multiple=4, uniform=True), num_rounds=1)
    [result] = job.plans((0.5,))[0.5]
    blocks = result.plan.key.split("|")
    assert len(set(blocks)) == 1


def test_the_winner_is_what_is_measured_last(tmp_path: Path) -> None:
    job = runner(tmp_path, num_rounds=1)
    [result] = job.plans((0.5,))[0.5]
    levels = job.closing_round(0.5, result.plan)
    smaller = materialize(MODEL, ADAPTER, levels)
    geometry = ADAPTER.geometry(smaller.config)
    assert {site: geometry.shape(site) for site in geometry.sites} == dict(result.plan.shapes)
    records = read_evaluations(tmp_path / "search.jsonl")
    assert result.plan.key in {record["plan"] for record in records}
    assert json.loads((tmp_path / "round-1-50.json").read_text())["fitness"] == result.fitness


def test_impossible_sizes_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="is possible"):
        runner(tmp_path).plans((0.5, 0.99))
    assert not list(tmp_path.iterdir())


def test_bytes_of_a_supernet_are_what_it_takes(tmp_path: Path) -> None:
    job = runner(tmp_path)
    space = job.narrowed(1, job.centre(0.5))
    job.supernet_for(tmp_path / "net", TOKENS_NL[:4], job.shapes_of([space]), job.centre(0.5))
    taken = sum(path.stat().st_size for path in (tmp_path / "net").glob("*.safetensors"))
    expected = job.supernet_bytes([0.5])
    assert expected < taken < expected + 20_000
