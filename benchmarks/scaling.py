"""Predict what pruning costs, and hold the prediction against runs of several small sizes.

    python benchmarks/scaling.py            predictions for 8B, 70B and 405B
    python benchmarks/scaling.py --check    also measure small models of random weights, and compare

Predictions multiply operation counts (`prune/forecast.py`) by the rates of a machine.  Those of
accelerators are assumptions, named in the table; for small models the rates are measured on this
machine first (the same file), on another size than the one that is predicted.  The last line
of stdout is one JSON document.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry
from lightstride.prune.forecast import Rates, forecast, measure_rates
from lightstride.prune.rounds import RoundRunner, RoundSettings
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.targets import TARGETS
from lightstride.results import markdown_table
from output import add_output, finish

LARGE = {
    "Llama-3.1-8B": (32, 4096, 32, 8, 14_336),
    "Llama-3.1-70B": (80, 8192, 64, 8, 28_672),
    "Llama-3.1-405B": (126, 16_384, 128, 8, 53_248),
}
"""Blocks, hidden size, query heads, KV heads, FFN channels."""
MACHINES = {
    "one accelerator, 400 / 150 / 20 Tflop/s": Rates(forward=4e14, gram=1.5e14, solve=2e13),
    "eight of them": Rates(forward=3.2e15, gram=1.2e15, solve=2e13),
}
"""Assumed: bf16 forward, Gram products, fp64 solves. Solves are on one device."""
SMALL = ((2, 256, 4, 2, 768), (4, 384, 6, 2, 1024), (4, 576, 9, 3, 1536), (3, 1024, 16, 4, 2816))
VOCABULARY = 8192
CALIBRATION, SEARCH, WINDOW = 65_536, 65_536, 512
SEED = 0


def geometry_of(blocks: int, hidden: int, heads: int, groups: int, channels: int) -> Geometry:
    """Sizes of a Llama."""
    size = 128
    return Geometry(
        family="llama",
        hidden_size=hidden,
        head_dim=size,
        vocab_size=128_256,
        tied_head=False,
        attention=(AttentionShape(groups, heads // groups),) * blocks,
        ffn=(FFNShape(channels),) * blocks,
        query_head_parameters=2 * size * hidden,
        kv_head_parameters=2 * size * hidden,
        channel_parameters=3 * hidden,
    )


def runner_of(
    geometry: Geometry, model: PreTrainedModel, tokens: tuple[int, int], work: Path, **how: object
) -> RoundRunner:
    """A run on random tokens, ready to be forecast or made."""
    cost = parameter_cost(geometry)
    calibration, search = tokens
    return RoundRunner(
        model=model,
        adapter=adapter_for(model.config),
        space=build_space(geometry, TARGETS["any"], cost),
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=torch.randint(VOCABULARY, (calibration // WINDOW, WINDOW)),
        search_NL=torch.randint(VOCABULARY, (search // 256, 256)),
        work=work,
        settings=RoundSettings(**how),  # type: ignore[arg-type]
    )


def random_model(
    blocks: int, hidden: int, heads: int, groups: int, channels: int
) -> PreTrainedModel:
    """A Llama of random weights in bf16."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    model.bfloat16()
    return model


def statistics_bytes(
    geometry: Geometry, num_tokens: int, *, bytes_per_number: int, resident_weights: int
) -> int:
    """Peak memory of a supernet's build: weights, two copies of the stream, one site's solve."""
    widest = max(geometry.num_inputs(geometry.shape(site)) for site in geometry.sites)
    stream = num_tokens * (geometry.hidden_size + widest) * bytes_per_number
    solve = widest**2 * (4 + 4 * 8) + 4 * 8 * widest * geometry.hidden_size
    return resident_weights + stream + solve


def predict() -> list[dict[str, object]]:
    """Hours, memory and disk of a `fast` run of one sparsity for large models."""
    stand_in = random_model(*SMALL[0])
    rows: list[dict[str, object]] = []
    for name, sizes in LARGE.items():
        geometry = geometry_of(*sizes)
        with tempfile.TemporaryDirectory() as folder:
            job = runner_of(geometry, stand_in, (CALIBRATION * 16, SEARCH), Path(folder))
            stages = forecast(job, [0.5])
            disk = job.supernet_bytes([0.5])
        weights = 2 * geometry.prunable_parameters
        memory = statistics_bytes(
            geometry, CALIBRATION * 4, bytes_per_number=2, resident_weights=weights // sizes[0]
        )
        row: dict[str, object] = {"model": name, "disk": disk, "device memory": memory}
        for machine, rates in MACHINES.items():
            row[machine] = {
                stage: operations.seconds(rates) for stage, operations in stages.items()
            }
        rows.append(row)
    return rows


def check() -> list[dict[str, object]]:
    """Measured and predicted seconds of runs of small models."""
    rows = []
    for sizes in SMALL:
        model = random_model(*sizes)
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


def hours(seconds: Mapping[str, float]) -> str:
    """Stages and their sum, in hours."""
    return f"{sum(seconds.values()) / 3600:.1f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    add_output(parser)
    flags = parser.parse_args()
    rows = predict()
    cells = []
    for row in rows:
        disk, memory = row["disk"], row["device memory"]
        assert isinstance(disk, int)
        assert isinstance(memory, int)
        times = [row[machine] for machine in MACHINES]
        cells.append(
            [
                str(row["model"]),
                f"{disk / 1e9:.0f}",
                f"{memory / 1e9:.0f}",
                *(hours(each) for each in times if isinstance(each, dict)),
            ]
        )
    header = ["model", "disk, GB", "device memory, GB", *(f"hours on {m}" for m in MACHINES)]
    print(markdown_table(header, cells), file=sys.stderr)
    checked = check() if flags.check else []
    finish("scaling", {"predicted": rows, "checked": checked}, flags, SEED)


if __name__ == "__main__":
    main()
