"""What a run will cost, before it begins."""

import math
from pathlib import Path

import pytest

from helpers.rounds import ADAPTER, MODEL, QUICK, TOKENS_NL, runner
from lightstride.models.shapes import AttentionShape, FFNShape, Site
from lightstride.prune import forecast as forecast_module
from lightstride.prune.forecast import (
    Rates,
    forecast,
    measure_rates,
    search_operations,
    sentence,
    supernet_operations,
    target_operations,
)
from lightstride.prune.space.budget import build_space, parameter_cost
from lightstride.prune.space.plan import Plan
from lightstride.prune.space.targets import Target
from lightstride.search.evolution import EvolutionSettings


def test_forecast_counts_what_happens(tmp_path: Path) -> None:
    job = runner(tmp_path)
    works = forecast(job, (0.25, 0.5))
    more = forecast(runner(tmp_path, num_rounds=4), (0.25, 0.5))
    one = forecast(runner(tmp_path, num_rounds=1), (0.25, 0.5))["searches"].forward
    later = works["searches"].forward - one
    assert 0 < later < one
    assert more["searches"].forward == pytest.approx(one + 3 * later)
    assert works["supernets"].gram < more["supernets"].gram
    assert works["closing rounds"] == more["closing rounds"]
    rates = measure_rates(MODEL, ADAPTER, TOKENS_NL[:4])
    assert min(rates.forward, rates.gram, rates.solve) > 0
    assert "minutes on this machine (supernets" in sentence(works, rates)


def test_a_correction_runs_a_second_stream(tmp_path: Path) -> None:
    plain, corrected = runner(tmp_path, correction=0.0), runner(tmp_path, correction=0.5)
    one, two = (forecast(job, (0.5,))["closing rounds"] for job in (plain, corrected))
    tokens = plain.calibration_NL.numel()
    assert two.forward - one.forward == 2 * plain.space.geometry.prunable_parameters * tokens
    geometry = plain.space.geometry
    inputs = [geometry.num_inputs(geometry.shape(site)) for site in geometry.sites]
    size = geometry.hidden_size
    assert two.solve - one.solve == pytest.approx(sum(target_operations(i, size) for i in inputs))
    assert two.gram - one.gram == pytest.approx(2 * tokens * size * sum(inputs))


def test_perplexities_count_every_model_that_is_measured(tmp_path: Path) -> None:
    job = runner(tmp_path)
    once = forecast(job, (0.5,), 0, 100)["perplexities"].forward
    healed = forecast(job, (0.5,), 1, 100)["perplexities"].forward
    assert 0 < once < healed < 2 * once
    assert "perplexities" not in forecast(job, (0.5,))


def test_work_grows_as_it_should() -> None:
    geometry = ADAPTER.geometry(MODEL.config)
    site, attention = Site(0, "ffn"), Site(0, "attention")
    few = supernet_operations(geometry, [(site, [FFNShape(24)])], 100)
    many = supernet_operations(geometry, [(site, [FFNShape(24), FFNShape(12)])], 200)
    assert many.gram == 2 * few.gram
    assert many.solve > few.solve
    heads = supernet_operations(geometry, [(attention, [AttentionShape(1, 1)])], 100)
    rates = Rates(forward=1e9, gram=1e9, solve=1e9)
    assert (few + heads).seconds(rates) == pytest.approx(few.seconds(rates) + heads.seconds(rates))
    space = build_space(geometry, Target(name="toy", channel_multiple=8), parameter_cost(geometry))
    plan = Plan({site: space.choices[site][-1] for site in space.sites})
    paper = EvolutionSettings(generations=15, offspring=32, tokens=(1024, 4096), survivors=(8, 3))
    slow, quick = search_operations(space, plan, paper), search_operations(space, plan, QUICK)
    assert slow.forward > 5 * quick.forward


def test_wide_solves_are_told_from_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def rate(_: object, width: int, __: int) -> float:
        asked.append(width)
        return width**0.4

    geometry = ADAPTER.geometry(MODEL.config)
    heads = geometry.num_inputs(geometry.attention[0])
    width = math.isqrt(geometry.ffn[0].num_channels * heads)
    monkeypatch.setattr(forecast_module, "rate_of_cuts", rate)
    for most in (width, width // 4 * 2):
        monkeypatch.setattr(forecast_module, "MOST_CHANNELS", most)
        assert forecast_module.solve_rate(MODEL, ADAPTER) == pytest.approx(width**0.4)
    assert asked == [width, width // 4, width // 4 * 2]
