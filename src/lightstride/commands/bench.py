"""The command `bench`: every load on one model, or on two in turn."""

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from lightstride.bench.machine import Machine, measure_machine
from lightstride.bench.measure import Load, measure_weights, ratios, run_in_turn, summarize
from lightstride.checkpoint import base_of, open_decoder
from lightstride.commands.outputs import printed, result_writer, save_result
from lightstride.config import BenchConfig
from lightstride.generate import Decoder
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.progress import Bar
from lightstride.results import MIB, Numbers, markdown_table
from lightstride.smash.decode.costs import cost_lines, costs_of


def bench(config: BenchConfig) -> Mapping[str, object]:
    """Measure the model and the one it is held against; the result, as in `result.json`."""
    with result_writer(config):
        return bench_alone(config)


def bench_alone(config: BenchConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    sources = [config.model, *([config.against] if config.against is not None else [])]
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    decoders = [
        open_decoder(source, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code)
        for source in sources
    ]
    machine = measure_machine(torch.device(device), dtype)
    numbers = measure(config, sources, decoders, machine)
    named = str(dtype).removeprefix("torch.")
    with printed(load_tables(numbers)):
        return save_result("bench", config, numbers, seed=config.seed, device=device, dtype=named)


def measure(
    config: BenchConfig, sources: Sequence[str], decoders: Sequence[Decoder], machine: Machine
) -> Numbers:
    """Every load on every model: the numbers of `result.json`."""
    weights = [measure_weights(decoder.model) for decoder in decoders]
    models: list[Numbers] = [
        {
            "source": source,
            **vars(size),
            "costs": costs_of(base_of(decoder)).complete().as_dict(),
            "loads": [],
        }
        for source, size, decoder in zip(sources, weights, decoders, strict=True)
    ]
    compared: list[Numbers] = []
    loads = [
        Load(batch, prompt, config.new_tokens)
        for prompt, batch in itertools.product(config.prompt, config.batch)
    ]
    for load in Bar(loads, desc="loads"):
        runs = run_in_turn(decoders, load, repeats=config.repeats, seed=config.seed)
        for model, size, mine in zip(models, weights, runs, strict=True):
            cast(list[Numbers], model["loads"]).append(summarize(mine, load, size, machine))
        if len(runs) > 1:
            compared.append({"batch": load.batch, "prompt": load.prompt, **ratios(*runs)})
    numbers: Numbers = {"machine": vars(machine), "model": models[0]}
    if len(models) > 1:
        numbers |= {"against": models[1], "ratios": compared}
    return numbers


def load_tables(numbers: Numbers) -> str:
    """The same numbers as tables for a person."""
    machine = cast(Mapping[str, float], numbers["machine"])
    parts = [
        f"this machine: reads {machine['bandwidth'] / 1e9:.1f} GB/s, "
        f"multiplies {machine['matrix_rate'] / 1e9:,.0f} GFLOP/s"
    ]
    for role in ("model", "against"):
        if role in numbers:
            parts.append(model_table(cast(Numbers, numbers[role])))
    if "ratios" in numbers:
        parts.append(ratio_table(cast(Sequence[Numbers], numbers["ratios"])))
    return "\n\n".join(parts)


def model_table(model: Numbers) -> str:
    """One model under every load."""
    header = ["batch × prompt", "first token ms", "decode tokens/s", "tokens/step", "KV MiB"]
    header += ["peak MiB", "% of matrix rate", "% of bandwidth"]
    rows = []
    for load in cast(Sequence[Numbers], model["loads"]):
        peak = load["peak_bytes"]
        rows.append(
            [
                f"{load['batch']} × {load['prompt']}",
                spread(load["first_token_seconds"], 1000),
                spread(load["decode_tokens_per_second"]),
                f"{load['tokens_per_step']:.2f}",
                f"{cast(int, load['kv_bytes']) / MIB:.1f}",
                "–" if peak is None else f"{cast(int, peak) / MIB:,.0f}",
                f"{100 * cast(float, load['share_of_matrix_rate']):.0f}",
                f"{100 * cast(float, load['share_of_bandwidth']):.0f}",
            ]
        )
    weights = cast(int, model["total_bytes"]) / MIB
    title = f"{model['source']}: {model['parameters']:,} parameters, {weights:,.1f} MiB of weights"
    costs = cast(Mapping[str, Sequence[tuple[int, float]]], model["costs"])
    lines = cost_lines({int(each): points for each, points in costs.items()})
    return "\n\n".join([title, "\n".join(lines), markdown_table(header, rows)])


def ratio_table(compared: Sequence[Numbers]) -> str:
    """How many times faster the first model is than the second."""
    rows = [
        [
            f"{load['batch']} × {load['prompt']}",
            spread(load["first_token"], digits=2),
            spread(load["decode"], digits=2),
            f"{load['kv_bytes']:.2f}",
        ]
        for load in compared
    ]
    header = ["batch × prompt", "first token ×", "decode ×", "KV bytes ×"]
    return f"first model against second, above 1 is faster\n\n{markdown_table(header, rows)}"


def spread(value: object, factor: float = 1, digits: int = 1) -> str:
    """A median with its lowest and highest."""
    found = {k: factor * v for k, v in cast(Mapping[str, float], value).items()}
    low, high = (f"{found[key]:,.{digits}f}" for key in ("low", "high"))
    return f"{found['median']:,.{digits}f} ({low}–{high})"
