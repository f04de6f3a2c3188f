"""Measure the search: how good the plans are, and what finding them costs.

    python benchmarks/search.py --text wiki.valid.raw.gz --test wiki.test.raw.gz
    python benchmarks/search.py --text wiki.valid.raw.gz --test wiki.test.raw.gz --compare

The protocol is that of `protocol.py`.  The default runs all rounds for several true sparsities at
once.  With --compare the published search and the default one share one supernet, and their best
plans are scored on windows that neither of them saw.  The last line of stdout is one JSON document.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from lightstride.prune.candidate_blocks import CutSiteOf
from lightstride.prune.cut.materialize import mask
from lightstride.prune.fitness import Fitness, FitnessSettings
from lightstride.prune.rounds import RoundSettings
from lightstride.prune.space.plan import Plan
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves, mutants
from lightstride.search.result import GenerationReport, OnGeneration
from output import finish
from protocol import Bench, open_bench, random_windows, run_all, search_flags

PAPER = EvolutionSettings(
    generations=15, offspring=32, tokens=(1024, 4096, 16_384), survivors=(8, 3, 2)
)
"""The published code's run that the baseline measured."""


@dataclass
class Curve:
    """The best plan after each generation, and what had been spent by then."""

    log: EvaluationLog[Plan]
    points: list[dict[str, object]]

    def __call__(self, report: GenerationReport[Plan]) -> None:
        self.points.append(
            {
                "tokens": self.log.tokens,
                "seconds": self.log.seconds,
                "plan": report.plan,
                "fitness": report.fitness,
            }
        )
        print(report.generation, self.log.tokens, report.fitness, file=sys.stderr)


def compare(bench: Bench, seed: int) -> dict[str, object]:
    """Both searches on one supernet."""
    share = bench.flags.sparsity[-1]
    with tempfile.TemporaryDirectory(dir=bench.flags.folder) as folder:
        runner = bench.runner(Path(folder), seed, RoundSettings(early_share=bench.flags.early))
        centre, limit = runner.centre(share), runner.limit(share)
        space = runner.narrowed(1, centre)
        count = round(len(runner.calibration_NL) * bench.flags.early)
        supernet = runner.supernet_for(
            Path(folder) / "net", runner.calibration_NL[:count], runner.shapes_of([space]), centre
        )
        losses = [[supernet.loss(s, shape) for shape in space.choices[s]] for s in space.sites]
        moves = Moves(space, limit)
        settings = FitnessSettings(stride=bench.flags.stride)

        def fitness_on(windows_NL: Tensor) -> Fitness:
            return Fitness(bench.model, bench.adapter, windows_NL, supernet.load, settings)

        fitness = fitness_on(runner.search_NL)
        fitness([centre], Sample(16_384))
        unseen_NL = random_windows(bench.text_T, 16_384, bench.flags.window, seed + 2)
        judge = fitness_on(unseen_NL)

        def paper(log: EvaluationLog[Plan], report: OnGeneration[Plan]) -> None:
            evolve(moves, centre, PAPER, log, seed, len(runner.search_NL), report)

        def fast(log: EvaluationLog[Plan], report: OnGeneration[Plan]) -> None:
            guided = GuidedSettings(generations=bench.flags.generations)
            search = GuidedSearch(moves, losses, guided, log, bench.flags.window)
            search.run(centre, seed, report)

        searches = {"fast": fast, "paper": paper}
        numbers: dict[str, object] = {
            "centre": judge([centre], Sample(16_384))[0],
            "candidate": candidate_cost(bench, fitness, moves, centre, supernet.load),
        }
        for name, search in searches.items():
            if name not in bench.flags.searches:
                continue
            log = EvaluationLog[Plan](fitness)
            curve = Curve(log, [])
            search(log, curve)
            for point in curve.points:
                plan = point.pop("plan")
                assert isinstance(plan, Plan)
                point["unseen"] = judge([plan], Sample(16_384))[0]
            numbers[name] = curve.points
    return numbers


def candidate_cost(
    bench: Bench,
    fitness: Fitness,
    moves: Moves[Plan],
    centre: Plan,
    level_of: CutSiteOf,
) -> dict[str, float]:
    """Seconds a candidate takes on 4,096 tokens: ours, and zeroed weights run uncached."""
    sample = Sample(4096)
    children = mutants(moves, moves.levels(centre), 12, Random(0))
    plans = [moves.plan(levels) for levels in children]
    fitness(plans, Sample(256))
    start = time.perf_counter()
    fitness(plans, sample)
    ours = (time.perf_counter() - start) / len(plans)
    twin = mask(bench.model, bench.adapter, {s: level_of(s, h) for s, h in centre.shapes.items()})
    windows = fitness.windows_NL[: sample.tokens // fitness.windows_NL.shape[1]]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            for tokens_L in windows:
                twin(tokens_L[None]).logits.float().log_softmax(-1)
        times.append(time.perf_counter() - start)
    return {"seconds": ours, "zeroed_uncached_seconds": min(times), "ratio": ours / min(times)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[search_flags()], add_help=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--compare", action="store_true")
    parser.add_argument(
        "--searches", nargs="+", choices=["fast", "paper"], default=["fast", "paper"]
    )
    flags = parser.parse_args()
    bench = open_bench(flags)
    runs = [(compare if flags.compare else run_all)(bench, seed) for seed in flags.seeds]
    finish("search", runs[0] if len(runs) == 1 else {"runs": runs}, flags, flags.seeds[0])


if __name__ == "__main__":
    main()
