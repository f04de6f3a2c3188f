"""One pass for all plans gives what running them one by one gives."""

from pathlib import Path
from random import Random

import pytest
import torch

from helpers.levels import one_level, own_blocks
from helpers.toys import TINY
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.shapes import Shape, Site
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.cut.refit import CutSite
from lightstride.prune.fitness import Fitness, FitnessSettings
from lightstride.prune.space.budget import build_space, parameter_cost
from lightstride.prune.space.plan import Plan, dense_plan
from lightstride.prune.space.targets import Target
from lightstride.prune.sweep import SweptFitness
from lightstride.search.evaluation_log import Sample
from lightstride.search.moves import Moves

WINDOWS_NL = torch.randint(0, 256, (7, 16), generator=torch.Generator().manual_seed(0))
SAMPLES = [Sample(48), Sample(80, first_window=2), Sample(48), Sample(112)]


class Case:
    """A toy in memory and on disk, and plans of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model = TINY[name]()
        self.model.save_pretrained(folder / "model", max_shard_size="30KB")
        self.dense = DenseSites.of(self.model, adapter_for(self.model.config))
        self.streamed = open_streamed(str(folder / "model"), dtype=torch.float32)

    def level_of(self, site: Site, shape: Shape) -> CutSite:
        weight_OI = self.dense.weights[site][OUTPUT_NAME[site.kind]]
        rows_TI = torch.randn(200, weight_OI.shape[1], generator=torch.Generator().manual_seed(7))
        dense = self.dense.geometry.shape(site)
        return one_level(weight_OI, own_blocks(rows_TI.T @ rows_TI, dense), shape, dense)

    def plans(self, count: int) -> list[Plan]:
        geometry = self.dense.geometry
        space = build_space(
            geometry, Target(name="toy", channel_multiple=16), parameter_cost(geometry)
        )
        random, moves = Random(0), Moves(space, space.largest)
        found = [
            moves.plan(tuple(random.randrange(len(costs)) for costs in moves.costs))
            for _ in range(count)
        ]
        last = geometry.sites[-1]
        return [*found, *(found[0].replace({last: s}) for s in space.choices[last]), found[1]]


def swept(
    case: Case, source: WeightSource, spill: Path | None = None, **settings: object
) -> SweptFitness:
    return SweptFitness(source, WINDOWS_NL, case.level_of, chosen(**settings), spill=spill)


def chosen(**settings: object) -> FitnessSettings:
    return FitnessSettings(**{"top_k": 100, "batch_tokens": 32, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TINY))
def test_one_pass_is_as_one_by_one(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    plans = case.plans(5)
    adapter = adapter_for(case.model.config)
    plain = Fitness(case.model, adapter, WINDOWS_NL, case.level_of, chosen())
    resident = swept(case, Resident(case.model))
    streamed = swept(case, case.streamed)
    spilled = swept(case, case.streamed, tmp_path / "spill")
    for sample in SAMPLES:
        values = plain(plans, sample)
        assert resident(plans, sample) == pytest.approx(values, rel=1e-6)
        assert streamed(plans, sample) == resident(plans, sample)
        assert spilled(plans, sample) == resident(plans, sample)
    assert not (tmp_path / "spill").exists()
    assert all(parameter.is_meta for parameter in case.streamed.model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_weight": 0.5, "hidden_blocks": (0, 1)},
        {"stride": 3, "slice_positions": 7},
        {"renormalize": True, "cache_bytes": 100_000},
    ],
)
def test_all_settings_count(settings: dict[str, object], tmp_path: Path) -> None:
    case = Case("llama", tmp_path)
    plans = case.plans(3)
    adapter = adapter_for(case.model.config)
    plain = Fitness(case.model, adapter, WINDOWS_NL, case.level_of, chosen(**settings))
    streamed = swept(case, case.streamed, **settings)
    for sample in SAMPLES[:2]:
        assert streamed(plans, sample) == pytest.approx(plain(plans, sample), rel=1e-5)
    assert len(streamed.dense_answers) == len(plain.dense_answers)


def test_every_block_is_read_once_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama", tmp_path)
    read: list[str] = []
    original = type(case.streamed).tensor

    def tensor(self: WeightSource, name: str) -> torch.Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(type(case.streamed), "tensor", tensor)
    evaluate = swept(case, case.streamed)
    evaluate(case.plans(9), SAMPLES[0])
    in_blocks = [name for name in read if ".layers." in name]
    assert len(in_blocks) == len(set(in_blocks))
    assert evaluate([dense_plan(case.dense.geometry)], SAMPLES[0])[0] == pytest.approx(0, abs=1e-4)


def test_branches_run_once_and_shapes_stand_together(tmp_path: Path) -> None:
    case = Case("llama", tmp_path)
    installed: list[tuple[Site, Shape]] = []

    def level_of(site: Site, shape: Shape) -> CutSite:
        installed.append((site, shape))
        return case.level_of(site, shape)

    evaluate = SweptFitness(Resident(case.model), WINDOWS_NL, level_of, chosen())
    evaluate(case.plans(8), SAMPLES[0])
    assert len(installed) == len(set(installed))
