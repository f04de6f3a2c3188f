"""Predict what pruning costs, and hold the prediction against runs of several small sizes.

    python benchmarks/scaling.py            predictions for 8B, 70B and 405B
    python benchmarks/scaling.py --check    also measure small models of random weights, and compare
    python benchmarks/scaling.py --ways 1B  a run in memory and block by block (`ways.py`), compared

Predictions are those of `lightstride prune --dry-run`, made from config.json files of the real
shapes: operation counts (`prune/forecast.py`) through rates of known machines, which are
assumptions (`prune/machines.json`).  For small models the rates are measured on this machine first,
and the run is made.  The last line of stdout is one JSON document.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from lightstride.commands.pruning.count import count_run
from lightstride.commands.pruning.dry_run import on_machine, text_of
from lightstride.config import PruneConfig
from lightstride.config.prune import MachineName
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import Geometry
from lightstride.prune.forecast import forecast, measure_rates
from lightstride.prune.rounds import RoundRunner, RoundSettings
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.targets import TARGETS
from lightstride.prune.ways import WAYS
from output import add_output, finish
from random_llama import Sizes, llama_config
from ways import SHAPES, compare

LARGE: Mapping[str, Sizes] = {
    "Llama-3.1-8B": (32, 4096, 32, 8, 14_336),
    "Llama-3.1-70B": (80, 8192, 64, 8, 28_672),
    "Llama-3.1-405B": (126, 16_384, 128, 8, 53_248),
}
"""Blocks, hidden size, query heads, KV heads, FFN channels."""
MACHINES: tuple[MachineName, ...] = ("h100", "8xmi300x", "laptop")
SMALL = ((2, 256, 4, 2, 768), (4, 384, 6, 2, 1024), (4, 576, 9, 3, 1536), (3, 1024, 16, 4, 2816))
VOCABULARY = 8192
CALIBRATION, SEARCH, WINDOW = 65_536, 65_536, 512
SEED = 0


def config_of(sizes: Sizes) -> PreTrainedConfig:
    """The config.json of a Llama 3.1 of these sizes."""
    config = llama_config(sizes, 128_256)
    config.max_position_embeddings, config.dtype = 131_072, "bfloat16"
    return config


def runner_of(
    geometry: Geometry, model: PreTrainedModel, tokens: tuple[int, int], work: Path, **how: object
) -> RoundRunner:
    """A run on random tokens, ready to be forecast or made."""
    cost = parameter_cost(geometry)
    calibration, search = tokens
    return RoundRunner(
        source=Resident(model),
        space=build_space(geometry, TARGETS["any"], cost),
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=torch.randint(VOCABULARY, (calibration // WINDOW, WINDOW)),
        search_NL=torch.randint(VOCABULARY, (search // 256, 256)),
        work=work,
        settings=RoundSettings(**how),  # type: ignore[arg-type]
    )


def random_model(sizes: Sizes) -> PreTrainedModel:
    """A Llama of random weights in bf16."""
    config = llama_config(sizes, VOCABULARY, tied=True)
    torch.manual_seed(SEED)
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    model.bfloat16()
    return model


def predict() -> list[dict[str, object]]:
    """What `prune --dry-run` says of a `fast` run of half the blocks, for large models."""
    rows: list[dict[str, object]] = []
    for name, sizes in LARGE.items():
        with tempfile.TemporaryDirectory() as folder:
            config_of(sizes).save_pretrained(folder)
            flags = PruneConfig(
                model=folder,
                output="cut",
                sparsity=(0.5,),
                dtype="bfloat16",
                dry_run=True,
                machine=MACHINES,
                calibration_tokens=CALIBRATION * 16,
                cache_gib=8.0,
            ).resolved()
            run = count_run(flags)
        found = [on_machine(run, machine) for machine in MACHINES]
        print(f"{name}\n{text_of(found)}\n", file=sys.stderr)
        rows.append({"model": name, "machines": [each.to_json() for each in found]})
    return rows


def check() -> list[dict[str, object]]:
    """Measured and predicted seconds of runs of small models."""
    rows = []
    for sizes in SMALL:
        model = random_model(sizes)
        adapter = adapter_for(model.config)
        geometry = adapter.geometry(model.config)
        with tempfile.TemporaryDirectory() as folder:
            job = runner_of(geometry, model, (16_384, 32_768), Path(folder), num_rounds=2)
            rates = measure_rates(model, adapter, job.calibration_NL[:8])
            stages = forecast(job, [0.5])
            predicted = sum(operations.seconds(rates) for operations in stages.values())
            start = time.perf_counter()
            [results] = job.plans([0.5]).values()
            job.closing_round(0.5, results[-1].plan)
            seconds = time.perf_counter() - start
            disk = job.supernet_bytes([0.5])
        rows.append(
            {
                "sizes": sizes,
                "measured": seconds,
                "predicted": predicted,
                "search measured": sum(result.seconds for result in results),
                "search predicted": stages["searches"].seconds(rates),
                "disk": disk,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "rates": vars(rates),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--ways", nargs="+", default=[], choices=["135M", *SHAPES])
    parser.add_argument("--only", nargs="+", default=["resident", "streamed"], choices=WAYS)
    parser.add_argument("--memory", help="limit of the ways that read block by block")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="flags of prune")
    add_output(parser)
    flags = parser.parse_args()
    if flags.ways:
        flags.folder.mkdir(parents=True, exist_ok=True)
        given = dict(each.split("=") for each in flags.set)
        changes = {name: int(v) if v.isdigit() else v for name, v in given.items()}
        found = [
            compare(shape, flags.only, flags.memory, flags.folder, changes) for shape in flags.ways
        ]
        finish("scaling-ways", {"rows": found}, flags, SEED)
        return
    rows = predict()
    checked = check() if flags.check else []
    finish("scaling", {"predicted": rows, "checked": checked}, flags, SEED)


if __name__ == "__main__":
    main()
