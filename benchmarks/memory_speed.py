"""Speed of one step and of the prompt on memory plans, against the full cache in the same run.

step_ms     median time of a step of one new token a row; the plans' steps take turns
speed       the full cache's median over the plan's
allowed     what the bytes allow: weights and cache of the full one over those of the plan
of_allowed  speed over allowed
prompt_s    seconds to read the context, in chunks of 512 tokens, one row

python benchmarks/memory_speed.py [--plan my-smashed] --contexts 200 8000 --batches 1 8
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lightstride.checkpoint import base_of, open_decoder
from lightstride.errors import ModelError
from lightstride.memory.attention import heads_of, read_by
from lightstride.memory.cache import Memory, MemoryCache, full_plan
from lightstride.memory.entries import KvType
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.plan_files import check_belongs, read_plans
from lightstride.memory.scores import Scores
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import locate
from output import add_output, finish, run_or_say

BUILT_IN = "smollm2-135m-smash"
CHUNK = 512
Numbers = dict[str, float]


@torch.inference_mode()
def read(model: PreTrainedModel, cache: MemoryCache, tokens_BQ: torch.Tensor, start: int) -> None:
    """Read new columns of all rows, which stay."""
    num_rows, num_new = tokens_BQ.shape
    positions_BQ = torch.arange(start, start + num_new).expand(num_rows, -1)
    sees_BQQ = torch.ones(num_new, num_new).tril().bool().expand(num_rows, -1, -1)
    cache.open(slice(0, num_rows), positions_BQ, sees_BQQ)
    with read_by(model, cache):
        model(input_ids=tokens_BQ, position_ids=positions_BQ, use_cache=False, logits_to_keep=1)
    cache.settle(torch.ones(num_rows, num_new, dtype=torch.bool))


def filled(
    model: PreTrainedModel, memory: Memory, tokens_T: torch.Tensor, batch: int
) -> tuple[MemoryCache, float]:
    """A cache of equal rows that hold these tokens, and the seconds to read them once."""
    cache = MemoryCache(model, memory)
    cache.add_row()
    started, place = time.perf_counter(), 0
    for part_Q in tokens_T.split(CHUNK):
        read(model, cache, part_Q[None], place)
        place += len(part_Q)
    cache.pack()
    seconds = time.perf_counter() - started
    cache.select_rows([0] * batch)
    return cache, seconds


def measure(
    model: PreTrainedModel,
    plans: Mapping[str, MemoryPlan],
    scores: Scores | None,
    context: int,
    batch: int,
    steps: int,
) -> dict[str, Numbers]:
    """Numbers of every plan, the full cache first, at one context and batch."""
    generator = torch.Generator().manual_seed(0)
    tokens_T = torch.randint(0, model.config.vocab_size, (context,), generator=generator)
    kinds: tuple[KvType, KvType] = ("model", "int8")
    caches, prompts = {}, {}
    for name, plan in plans.items():
        for kind in kinds:
            key = name if kind == "model" else f"{name} {kind}"
            caches[key], prompts[key] = filled(model, Memory(plan, kind, scores), tokens_T, batch)
    times: dict[str, list[float]] = {name: [] for name in caches}
    for step in range(steps):
        for name, cache in caches.items():
            started = time.perf_counter()
            read(model, cache, tokens_T[:1].expand(batch, 1), context + step)
            times[name].append(time.perf_counter() - started)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    first = next(iter(caches))
    numbers = {}
    for name, cache in caches.items():
        speed = statistics.median(times[first]) / statistics.median(times[name])
        allowed = (weights + caches[first].allocated_bytes) / (weights + cache.allocated_bytes)
        numbers[name] = {
            "step_ms": 1000 * statistics.median(times[name]),
            "speed": speed,
            "allowed": allowed,
            "of_allowed": speed / allowed,
            "cache_mb": cache.allocated_bytes / 1e6,
            "prompt_s": prompts[name],
        }
    return numbers


def run(flags: argparse.Namespace) -> None:
    """Measure all contexts and batches, print, and write."""
    file = read_plans(Path(locate(flags.plan)))
    if file is None:
        raise ModelError(f"{flags.plan} has no memory plan")
    model = base_of(open_decoder(flags.plan, dtype=torch.bfloat16, kv=1.0))
    plans = {"1": full_plan(model)}
    for budget, plan in file.plans.items():
        check_belongs(plan, heads_of(model), fingerprint(model), flags.plan)
        plans[f"{budget:g}"] = plan
    numbers: dict[str, object] = {}
    for context in flags.contexts:
        for batch in flags.batches:
            key = f"{context} tokens, batch {batch}"
            numbers[key] = measure(model, plans, file.scores, context, batch, flags.steps)
            sys.stderr.write(key + "\n")
    finish("memory-speed", numbers, flags, seed=0)


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", default=BUILT_IN, help="a smashed model with memory plans")
    parser.add_argument("--contexts", type=int, nargs="+", default=[200, 8000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=30)
    add_output(parser)
    run_or_say(run, parser.parse_args())


if __name__ == "__main__":
    main()
