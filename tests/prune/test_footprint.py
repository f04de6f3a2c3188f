"""Memory, disk and reads, counted before a run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from helpers.rounds import MODEL, runner
from helpers.spaces import Weighted, moves_at, toy
from lightstride.prune.cut.supernet import supernet_bytes
from lightstride.prune.footprint import (
    closing_bytes,
    disk_bytes,
    footprint,
    search_bytes,
    stream_bytes,
    tried_share,
)
from lightstride.prune.space.plan import Plan
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSearch, GuidedSettings

WEIGHTS = sum(parameter.nbytes for parameter in MODEL.parameters())


def test_a_supernet_takes_the_disk_that_was_foreseen(tmp_path: Path) -> None:
    job = runner(tmp_path / "run")
    centre = job.centre(0.5)
    levels = job.shapes_of([job.narrowed(1, centre)])
    job.supernet_for(tmp_path / "net", job.calibration_NL, levels, centre)
    tensors = sum(path.stat().st_size for path in (tmp_path / "net").glob("*.safetensors"))
    headers = 8192 * len(job.space.sites)
    assert 0 < tensors - job.supernet_bytes([0.5]) < headers


def test_disk_is_that_of_the_fullest_moment(tmp_path: Path) -> None:
    job = runner(tmp_path)
    whole = {site: [job.space.geometry.shape(site)] for site in job.space.sites}
    checkpoint = WEIGHTS - 4 * int(0.5 * job.space.geometry.prunable_parameters)
    closing = disk_bytes(job, [0.5], 0) - checkpoint
    assert closing == closing_bytes(job, 0.5)
    assert 0 < closing < supernet_bytes(job.space.geometry, whole) + checkpoint
    assert disk_bytes(job, [0.5, 0.5], 0) == 2 * checkpoint + closing
    job.supernet_bytes = lambda shares: 10**9  # type: ignore[method-assign]
    assert disk_bytes(job, [0.5, 0.5], 0) == 10**9


def test_streams_grow_with_text_and_correction(tmp_path: Path) -> None:
    geometry = runner(tmp_path).space.geometry
    plain, corrected = runner(tmp_path, correction=0.0), runner(tmp_path, correction=0.5)
    second = plain.calibration_NL.numel() * geometry.hidden_size * 4
    assert stream_bytes(corrected) - stream_bytes(plain) == second
    corrected.calibration_NL = torch.cat([corrected.calibration_NL] * 2)
    assert stream_bytes(corrected) == 2 * (stream_bytes(plain) + second)


def test_weights_lie_where_they_fit(tmp_path: Path) -> None:
    job = runner(tmp_path)
    host = footprint(job, [0.5])
    assert min(host.memory.values()) > WEIGHTS
    assert not host.device_memory
    large = footprint(job, [0.5], device_memory=10 * WEIGHTS, devices=1)
    assert min(large.device_memory.values()) > WEIGHTS
    small = footprint(job, [0.5], device_memory=WEIGHTS, devices=4)
    assert small.device_memory["statistics"] < large.device_memory["statistics"]
    assert small.device_memory["search"] == search_bytes(job, [0.5]) + WEIGHTS // 4
    assert small.memory["statistics"] > WEIGHTS + stream_bytes(job)
    assert {host.disk, host.reads} == {large.disk, large.reads, small.disk, small.reads}


def test_healing_and_no_search(tmp_path: Path) -> None:
    job = runner(tmp_path)
    healed = footprint(job, [0.5], 1)
    assert healed.memory["healing"] > footprint(job, [0.5]).memory["saving"]
    assert healed.disk > footprint(job, [0.5]).disk
    assert search_bytes(runner(tmp_path, search=None), [0.5]) == 0
    assert footprint(runner(tmp_path, search=None), [0.5]).reads < healed.reads


@pytest.mark.parametrize(("generations", "offspring"), [(1, 8), (1, 12), (6, 12)])
def test_a_search_tries_the_share_of_levels_that_was_foreseen(
    generations: int, offspring: int
) -> None:
    moves, centre = moves_at(toy(12), 0.5)
    losses = [[(1 - cost / max(site)) ** 2 for cost in site] for site in moves.space.level_costs]
    fitness, tried = Weighted(moves.space, 1), set()

    def evaluate(plans: Sequence[Plan], sample: Sample) -> list[float]:
        for plan in plans:
            tried.update(enumerate(moves.levels(plan)))
        return fitness(plans, sample)

    settings = GuidedSettings(generations=generations, offspring=offspring)
    GuidedSearch(moves, losses, settings, EvaluationLog(evaluate), 512).run(centre, 0)
    share = len(tried) / sum(map(len, losses))
    assert share == pytest.approx(tried_share(settings), rel=0.25)
    assert tried_share(EvolutionSettings()) == 1
