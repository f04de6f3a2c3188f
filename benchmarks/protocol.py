"""The protocol that the benchmarks of pruning share: windows, a run of all rounds, its numbers.

Calibration windows have 512 tokens and stand at seeded random offsets of one text, as search
windows do; perplexity is taken on windows of 2,048 of another text, every tenth of them.  Both
texts are tokenized whole, without special tokens.
"""

import argparse
import gzip
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.checkpoint import save_checkpoint
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.families.adapter import Adapter
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import Site
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.cut.refit import CutSite
from lightstride.prune.fitness import FitnessSettings
from lightstride.prune.heal import Healing, heal
from lightstride.prune.rounds import RoundRunner, RoundSettings, name_of
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.plan import Plan, sparsity
from lightstride.prune.space.targets import named_target
from lightstride.search.guided import GuidedSettings
from output import add_output

EVERY = 10
"""One window of so many of the test text is read."""


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
            source=Resident(self.model),
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
