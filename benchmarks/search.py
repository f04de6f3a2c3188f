"""Measure the search: how good the plans are, and what finding them costs.

    python benchmarks/search.py --text wiki.valid.raw.gz --test wiki.test.raw.gz
    python benchmarks/search.py --text wiki.valid.raw.gz --test wiki.test.raw.gz --compare

Protocol: calibration windows of 512 tokens and search windows at seeded random offsets of one
text, perplexity on windows of 2,048 of another, every tenth of them; both tokenized whole without
special tokens.  The default runs all rounds for several true sparsities at once.  With --compare
the published search and the default one share one supernet, and their best plans are scored on
windows that neither of them saw.  The last line of stdout is one JSON document.
"""

import argparse
import gzip
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.checkpoint import save_checkpoint
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.families.adapter import Adapter
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.shapes import Site
from lightstride.prune.cut.materialize import mask, materialize
from lightstride.prune.cut.refit import CutSite
from lightstride.prune.fitness import CutSiteOf, Fitness, FitnessSettings
from lightstride.prune.heal import Healing, heal
from lightstride.prune.rounds import RoundRunner, RoundSettings, name_of
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.plan import Plan, sparsity
from lightstride.prune.space.targets import named_target
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves, mutants
from lightstride.search.result import GenerationReport, OnGeneration
from record import add_output, finish

PAPER = EvolutionSettings(
    generations=15, offspring=32, tokens=(1024, 4096, 16_384), survivors=(8, 3, 2)
)
"""The published code's run that the baseline measured."""
EVERY = 10


def read_tokens(model: str, path: Path) -> Tensor:
    """A text tokenized whole, without special tokens, (T,)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        tokens = load_tokenizer(model)(file.read(), add_special_tokens=False)["input_ids"]
    return torch.tensor(tokens)


def random_windows(tokens_T: Tensor, num_tokens: int, window: int, seed: int) -> Tensor:
    """Windows at random offsets (N, L)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens_T) - window, (num_tokens // window,), generator=generator)
    return torch.stack([tokens_T[start : start + window] for start in starts.tolist()])


@dataclass(frozen=True)
class Bench:
    """A dense model, its texts, and the flags."""

    model: PreTrainedModel
    adapter: Adapter
    text_T: Tensor
    test_NL: Tensor
    flags: argparse.Namespace

    def runner(self, work: Path, seed: int, settings: RoundSettings) -> RoundRunner:
        """What the command does, on the protocol's windows."""
        geometry = self.adapter.geometry(self.model.config)
        cost = parameter_cost(geometry)
        flags = self.flags
        return RoundRunner(
            model=self.model,
            adapter=self.adapter,
            space=build_space(geometry, named_target(flags.target), cost),
            dense_cost=dense_cost(geometry, cost),
            calibration_NL=random_windows(self.text_T, flags.tokens, 512, seed),
            search_NL=random_windows(self.text_T, flags.search_tokens, flags.window, seed + 1),
            work=work,
            settings=settings,
            progress=True,
        )

    def save(self, model: PreTrainedModel, name: str, record: dict[str, object]) -> None:
        """Keep a checkpoint, where that is wanted."""
        if self.flags.save:
            tokenizer = load_tokenizer(self.flags.model)
            record = {"kind": "prune", **record}
            save_checkpoint(model, tokenizer, Path(self.flags.save) / name, record=record)

    def healed(self, cut: PreTrainedModel, tokens_NL: Tensor, folder: Path, seed: int) -> float:
        """Perplexity of a cut model after passes of training, in place, towards the dense one."""
        healing = Healing(passes=self.flags.heal, seed=seed)
        heal(cut, self.model, self.adapter, tokens_NL, healing, folder, progress=True)
        return perplexity(cut, self.test_NL).value

    def perplexity(self, levels: dict[Site, CutSite] | None) -> float:
        """Perplexity of the model, cut or whole, on the test text."""
        cut = self.model if levels is None else materialize(self.model, self.adapter, levels)
        return perplexity(cut, self.test_NL).value


def run_all(bench: Bench, seed: int) -> dict[str, object]:
    """All rounds at all sparsities; perplexities of the closing rounds."""
    flags = bench.flags
    rounds = RoundSettings(
        search=None if flags.no_search else GuidedSettings(generations=flags.generations),
        num_rounds=flags.rounds,
        early_share=flags.early,
        split=flags.split,
        correction=flags.correction,
        fitness=FitnessSettings(stride=flags.stride),
        seed=seed,
    )
    numbers: dict[str, object] = {"seed": seed}
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        runner = bench.runner(Path(folder), seed, rounds)
        start = time.perf_counter()
        found = runner.plans(flags.sparsity)
        numbers["search_seconds"] = round(time.perf_counter() - start, 1)
        for share, results in found.items():
            plan = results[-1].plan if results else runner.centre(share)
            levels = runner.closing_round(share, plan)
            name = name_of(share)
            numbers[f"perplexity_{name}"] = bench.perplexity(levels)
            numbers[f"sparsity_{name}"] = sparsity(plan, runner.space.geometry)
            numbers[f"plan_{name}"] = plan.key
            numbers[f"fitness_{name}"] = [result.fitness for result in results]
            cut = materialize(bench.model, bench.adapter, levels)
            chosen = Plan(plan.shapes, {site: level.kept for site, level in levels.items()})
            record = {
                "plan": chosen.to_json(),
                "numbers": {"sparsity": numbers[f"sparsity_{name}"]},
            }
            bench.save(cut, name, record)
            if flags.heal:
                numbers[f"healed_perplexity_{name}"] = bench.healed(
                    cut, runner.calibration_NL, Path(folder) / f"healing-{name}", seed
                )
                bench.save(cut, f"{name}-healed", record)
            print({k: v for k, v in numbers.items() if "plan" not in k}, file=sys.stderr)
        numbers["seconds"] = round(time.perf_counter() - start, 1)
        numbers["evaluated_tokens"] = sum(o.tokens for some in found.values() for o in some)
    return numbers


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


def search_flags() -> argparse.ArgumentParser:
    """Flags of a run of all rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True, help="calibration and search")
    parser.add_argument("--test", type=Path, required=True, help="perplexity")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--tokens", type=int, default=65_536, help="calibration tokens")
    parser.add_argument("--search-tokens", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=256, help="tokens of a search window")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--early", type=float, default=0.25, help="share for supernets")
    parser.add_argument("--stride", type=int, default=1, help="score every so many positions")
    parser.add_argument("--correction", type=float, default=RoundSettings.correction)
    parser.add_argument("--split", choices=["free", "fixed"], default="free")
    parser.add_argument("--target", default="any")
    parser.add_argument("--no-search", action="store_true", help="uniform plans")
    parser.add_argument("--heal", type=int, default=0, help="passes of training after the cut")
    parser.add_argument("--save", help="folder for the checkpoints")
    parser.add_argument("--folder", help="where to work (a temporary folder inside it)")
    add_output(parser)
    return parser


def open_bench(flags: argparse.Namespace) -> Bench:
    """The model and the texts that the flags name."""
    model = load_model(flags.model, dtype=torch.bfloat16)
    test_T = read_tokens(flags.model, flags.test)
    test_NL = test_T[: len(test_T) // 2048 * 2048].view(-1, 2048)[::EVERY]
    text_T = read_tokens(flags.model, flags.text)
    return Bench(model, adapter_for(model.config), text_T, test_NL, flags)


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
