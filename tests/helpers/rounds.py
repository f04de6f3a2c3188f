"""A runner of a toy, with a search that is soon done."""

from dataclasses import replace
from pathlib import Path

import torch

from helpers.toys import tiny_llama
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.prune.rounds import RoundRunner, RoundSettings
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.targets import Target
from lightstride.search.guided import GuidedSettings

MODEL = tiny_llama(num_layers=3)
ADAPTER = adapter_for(MODEL.config)
TOKENS_NL = torch.randint(0, 256, (24, 16), generator=torch.Generator().manual_seed(0))
QUICK = GuidedSettings(
    generations=2, offspring=4, probe_tokens=32, tokens=(32, 64), survivors=(2, 1)
)


def runner(
    work: Path,
    target: Target | None = None,
    source: WeightSource | None = None,
    **changes: object,
) -> RoundRunner:
    geometry = ADAPTER.geometry(MODEL.config)
    cost = parameter_cost(geometry)
    settings = replace(RoundSettings(search=QUICK, num_rounds=2), **changes)  # type: ignore[arg-type]
    work.mkdir(parents=True, exist_ok=True)
    return RoundRunner(
        source=Resident(MODEL) if source is None else source,
        space=build_space(geometry, target or Target(name="toy", channel_multiple=4), cost),
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=TOKENS_NL[:16],
        search_NL=TOKENS_NL[16:],
        work=work,
        settings=settings,
    )
