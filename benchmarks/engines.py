"""How much of the speed that pruning promises an engine delivers.

Decoding one token reads all weights once, so a model with half the bytes should decode twice as
fast; filling the prompt computes, so half the operations should take half the time.  These
ratios are the ideal; a share is what was measured over what is ideal.  Head and embedding are
counted: a tied head is read once a token as the head, and one row of it as the embedding.

Dense and pruned models run side by side: each round measures all of them, one after the other in
a changing order, and a share is the median over rounds of the ratio within a round.  Weights do
not change speed, so without --pruned the models are cut at random to shapes of the right size;
`even` has the same widths in all blocks, at the same size, and shows what unevenness costs.

    python benchmarks/engines.py smollm2-135m --rounds 7
    python benchmarks/engines.py smollm2-135m --pruned 25=DIR 50=DIR

On a busy machine, `--clock processor --threads 1` counts the process's own seconds.

Prints a table to stderr and, last, one line of JSON to stdout.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from statistics import median

import torch
import xllamacpp
from transformers import DynamicCache, PreTrainedModel

from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.shapes import AttentionKept, AttentionShape, FFNKept, Geometry, Kept, Shape
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite, kept_inputs
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.narrow import limit_for, uniform_plan
from lightstride.prune.space.plan import Plan
from lightstride.prune.space.targets import named_target
from lightstride.search.moves import Moves
from output import add_output, finish

CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}
Clock = Callable[[], float]
Timer = Callable[[], tuple[float, float]]
"""Seconds of one prefill and of one decoding."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run does."""

    prefill: int
    decode: int
    threads: int


def stand_in(geometry: Geometry, share: float, target: str, *, uneven: bool, seed: int) -> Plan:
    """Shapes of the right size: the same in all blocks, or far from it."""
    cost = parameter_cost(geometry)
    space = build_space(geometry, named_target(target), cost)
    limit = limit_for(share, dense_cost(geometry, cost), space)
    plan = uniform_plan(space, share, limit)
    if not uneven:
        return plan
    moves, random = Moves(space, limit), Random(seed)
    levels = moves.levels(plan)
    for _ in range(40 * geometry.num_blocks):
        levels = moves.mutate(levels, random)
    return moves.plan(levels)


def first_units(shape: Shape) -> Kept:
    """Units to keep; which ones does not matter here."""
    if isinstance(shape, AttentionShape):
        queries = tuple(range(shape.queries_per_group))
        return AttentionKept(tuple(range(shape.num_kv_heads)), (queries,) * shape.num_kv_heads)
    return FFNKept(tuple(range(shape.num_channels)))


def cut(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The model cut to these shapes."""
    adapter = adapter_for(model.config)
    dense = DenseSites.of(model, adapter)
    levels = {}
    for site, shape in plan.shapes.items():
        kept = first_units(shape)
        columns = kept_inputs(kept, dense.geometry.shape(site), dense.geometry.head_dim)
        weight = dense.weights[site][OUTPUT_NAME[site.kind]][:, columns]
        levels[site] = CutSite(kept, weight, 0.0)
    return materialize(model, adapter, levels)


def decode_bytes(geometry: Geometry, work: Work) -> float:
    """Bytes read for one token, in 2-byte numbers: blocks, head, and keys and values so far."""
    shapes = [geometry.shape(site) for site in geometry.sites]
    weights = sum(geometry.parameters(shape) for shape in shapes)
    kv_heads = sum(shape.num_kv_heads for shape in geometry.attention)
    context = work.prefill + work.decode / 2
    head = (geometry.vocab_size + 1) * geometry.hidden_size
    return 2 * (weights + head + 2 * kv_heads * geometry.head_dim * context)


def prefill_operations(geometry: Geometry, work: Work) -> float:
    """Multiplications and additions for the prompt; the head answers for its last token alone."""
    shapes = [geometry.shape(site) for site in geometry.sites]
    weights = sum(geometry.parameters(shape) for shape in shapes)
    heads = sum(shape.num_heads for shape in geometry.attention)
    scores = 2 * heads * geometry.head_dim * work.prefill  # half of the square, twice a product
    head = geometry.vocab_size * geometry.hidden_size
    return 2.0 * (work.prefill * (weights + scores) + head)


def llama_cpp_timer(path: Path, work: Work, clock: Clock) -> Timer:
    """Prefill and greedy decoding inside llama.cpp."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = settings.n_batch = settings.n_ubatch = work.prefill + work.decode + 8
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = work.threads
    settings.verbosity = -1
    server = xllamacpp.Server(settings)
    prompt = [Random(0).randrange(100, 10_000) for _ in range(work.prefill)]

    def complete(num_tokens: int, *, cached: bool) -> None:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": num_tokens,
                "temperature": 0,
                "samplers": [],
                "ignore_eos": True,
                "cache_prompt": cached,
            }
        )
        timings = answer["timings"]
        assert timings["prompt_n"] == (1 if cached else work.prefill)
        assert timings["predicted_n"] == num_tokens

    def run() -> tuple[float, float]:
        start = clock()
        complete(1, cached=False)
        middle = clock()
        complete(work.decode, cached=True)
        return middle - start, clock() - middle

    return run


def transformers_timer(model: PreTrainedModel, work: Work, clock: Clock) -> Timer:
    """Prefill and greedy decoding by transformers, in bf16."""
    model = model.to(torch.bfloat16)
    torch.manual_seed(0)
    prompt = torch.randint(100, 10_000, (1, work.prefill))

    @torch.inference_mode()
    def run() -> tuple[float, float]:
        cache = DynamicCache(config=model.config)
        start = clock()
        logits = model(prompt, past_key_values=cache, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(-1)
        middle = clock()
        for _ in range(work.decode):
            logits = model(token, past_key_values=cache).logits
            token = logits[:, -1:].argmax(-1)
        return middle - start, clock() - middle

    return run


def measure(timers: Mapping[str, Timer], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Times of every model in every round, after one round that does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    random = Random(0)
    for turn in range(rounds + 1):
        order = list(timers)
        random.shuffle(order)
        for name in order:
            seconds = timers[name]()
            if turn:
                times[name].append(seconds)
    return times


def shares(
    times: Mapping[str, list[tuple[float, float]]],
    geometries: Mapping[str, Geometry],
    work: Work,
) -> dict[str, dict[str, float]]:
    """For every pruned model, what of the ideal was reached, and the tokens per second."""
    found: dict[str, dict[str, float]] = {}
    for name, runs in times.items():
        gains = [
            (dense[part] / own[part])
            for part in (0, 1)
            for dense, own in zip(times["dense"], runs, strict=True)
        ]
        prefill_gain, decode_gain = median(gains[: len(runs)]), median(gains[len(runs) :])
        prefill_ideal, decode_ideal = (
            count(geometries["dense"], work) / count(geometries[name], work)
            for count in (prefill_operations, decode_bytes)
        )
        found[name] = {
            "decode_share_of_ideal": round(decode_gain / decode_ideal, 4),
            "prefill_share_of_ideal": round(prefill_gain / prefill_ideal, 4),
            "decode_gain": round(decode_gain, 4),
            "decode_ideal": round(decode_ideal, 4),
            "prefill_gain": round(prefill_gain, 4),
            "prefill_ideal": round(prefill_ideal, 4),
            "decode_tokens_per_second": round(work.decode / median(own for _, own in runs), 2),
            "prefill_tokens_per_second": round(work.prefill / median(own for own, _ in runs), 1),
        }
    return found


def report(engine: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """A table for people."""
    print(
        f"\n{engine:14}{'prefill/s':>11}{'gain':>7}{'ideal':>7}{'share':>7}",
        end="",
        file=sys.stderr,
    )
    print(f"{'decode/s':>11}{'gain':>7}{'ideal':>7}{'share':>7}", file=sys.stderr)
    for name, row in found.items():
        line = f"{name:14}"
        for part in ("prefill", "decode"):
            line += f"{row[f'{part}_tokens_per_second']:11.1f}{row[f'{part}_gain']:7.3f}"
            line += f"{row[f'{part}_ideal']:7.3f}{row[f'{part}_share_of_ideal']:7.3f}"
        print(line, file=sys.stderr)


def variants(dense: PreTrainedModel, options: argparse.Namespace) -> dict[str, PreTrainedModel]:
    """The dense model, and for every size the pruned one (or a stand-in) and one of even widths."""
    geometry = adapter_for(dense.config).geometry(dense.config)
    given = dict(entry.split("=", 1) for entry in options.pruned)
    models = {"dense": dense}
    for size in options.sizes:
        share = float(Fraction(size, 100))
        if str(size) in given:
            models[str(size)] = load_model(given[str(size)])
        else:
            plan = stand_in(geometry, share, options.target, uneven=True, seed=size)
            models[str(size)] = cut(dense, plan)
        even = stand_in(geometry, share, options.target, uneven=False, seed=size)
        models[f"{size} even"] = cut(dense, even)
    return models


def prepare(
    engine: str, models: Mapping[str, PreTrainedModel], work: Work, options: argparse.Namespace
) -> dict[str, Timer]:
    """Something that runs each model once in this engine."""
    clock = CLOCKS[options.clock]
    if engine == "transformers":
        return {name: transformers_timer(model, work, clock) for name, model in models.items()}
    tokenizer = load_tokenizer(options.model)
    timers: dict[str, Timer] = {}
    with tempfile.TemporaryDirectory() as folder:  # llama.cpp keeps what it maps
        for name, model in models.items():
            path = Path(folder) / f"{name}.gguf"
            geometry = adapter_for(model.config).geometry(model.config)
            weights = ModelWeights(model)
            write_gguf(
                weights, model.config, geometry, tokenizer, path, dtype=options.dtype, name=name
            )
            timers[name] = llama_cpp_timer(path, work, clock)
    return timers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--pruned", nargs="*", default=[], metavar="SIZE=DIR")
    parser.add_argument("--sizes", nargs="*", type=int, default=[25, 50])
    parser.add_argument("--target", default="any")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--engines", nargs="*", default=["llama.cpp", "transformers"])
    add_output(parser)
    options = parser.parse_args()
    work = Work(prefill=options.prefill, decode=options.decode, threads=options.threads)
    torch.set_num_threads(work.threads)

    models = variants(load_model(options.model), options)
    geometries = {
        name: adapter_for(model.config).geometry(model.config) for name, model in models.items()
    }
    results: dict[str, dict[str, dict[str, float]]] = {}
    for engine in options.engines:
        timers = prepare(engine, models, work, options)
        found = shares(measure(timers, options.rounds), geometries, work)
        report(engine, found)
        results[engine] = {name: found[name] for name in found if name != "dense"}
        results[engine]["dense"] = {
            key: value for key, value in found["dense"].items() if key.endswith("per_second")
        }
    finish("engines", results, options, 0)
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's servers may hang when they are shut down in order


if __name__ == "__main__":
    main()
