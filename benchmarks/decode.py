"""What a macro step of the mode trust costs next to a plain step, and what the KV cache holds.

The grafts are random, as published but for the stop head, and forced to say n tokens a step, so
nothing is learned here about quality: only what n tokens a step would be worth.  Plain and smashed
answers take turns; a step's time is the median over all steps after the prompt's.

The ceiling is what reading weights alone allows: a forward of the base reads W bytes, merging E,
a micro step M (its layers, its head, the stop head), so n tokens a step are at most
n W / (W + E + (n - 1) M) times as fast.

    python benchmarks/decode.py --output results/decode.json
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightstride.generate import Decoder, PlainDecoder, Settings, Step
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig
from output import add_output, finish


@dataclass(frozen=True)
class Run:
    """Step times of one answer, and what the cache held at its end."""

    step_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """The same in processor time, which other work on the machine disturbs less."""
    cache_bytes: int
    entries: int
    entry_bytes: int


def forced(model: SmashModel, num_tokens: int) -> SmashModel:
    """The model, saying this many tokens in every step."""
    model.config.max_segment = num_tokens
    assert isinstance(model.stop, nn.Linear)
    nn.init.zeros_(model.stop.weight)
    nn.init.constant_(model.stop.bias, -100.0)
    return model


def run(decoder: Decoder, prompts: Sequence[Sequence[int]], settings: Settings) -> Run:
    """Answer once, timing every step after the prompt's."""
    moments, cpu_moments = [], []
    steps: list[Step] = []
    for step in decoder.steps(prompts, settings):
        moments.append(time.perf_counter())
        cpu_moments.append(time.process_time())
        steps.append(step)
    last = steps[-1]
    return Run(
        differences(moments),
        differences(cpu_moments),
        last.allocated_bytes,
        sum(last.kv_entries),
        last.entry_bytes,
    )


def differences(moments: Sequence[float]) -> tuple[float, ...]:
    """Times between neighbors."""
    return tuple(b - a for a, b in itertools.pairwise(moments))


def num_bytes(*modules: nn.Module) -> int:
    """Bytes of all distinct parameters of some modules."""
    parameters = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def ceiling(model: SmashModel, num_tokens: int) -> float:
    """Largest possible gain over the plain decoder, by bytes of weights read."""
    base = num_bytes(adapter_for(model.base.config).decoder(model.base))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    base += num_bytes(head) - num_bytes(embedding)
    micro_head = model.micro_head_MD
    micro = num_bytes(model.micro, model.stop) + micro_head.numel() * micro_head.element_size()
    assert model.embedder is not None
    merge = num_bytes(model.embedder) if num_tokens > 1 else 0
    return num_tokens * base / (base + merge + (num_tokens - 1) * micro)


def compare(
    model: SmashModel, plain: Decoder, smashed: Decoder, num_tokens: int, args: argparse.Namespace
) -> list[dict[str, float]]:
    """One row for every prompt length and batch size."""
    rows = []
    for prompt_length, batch in itertools.product(args.prompts, args.batches):
        generator = torch.Generator().manual_seed(args.seed)
        shape = (batch, prompt_length)
        prompts = torch.randint(5, 4000, shape, generator=generator).tolist()
        settings = Settings(max_new_tokens=args.new_tokens, ignore_end_tokens=True, confidence=0.5)
        times: dict[str, list[float]] = {"plain": [], "smashed": [], "plain_cpu": [], "cpu": []}
        for _ in range(args.repeats):
            plain_run = run(plain, prompts, settings)
            smashed_run = run(smashed, prompts, settings)
            times["plain"] += plain_run.step_seconds
            times["smashed"] += smashed_run.step_seconds
            times["plain_cpu"] += plain_run.cpu_seconds
            times["cpu"] += smashed_run.cpu_seconds
        plain_step, macro_step, plain_cpu, macro_cpu = map(statistics.median, times.values())
        row = {
            "tokens_per_step": num_tokens,
            "prompt_tokens": prompt_length,
            "batch": batch,
            "plain_step_ms": 1000 * plain_step,
            "macro_step_ms": 1000 * macro_step,
            "macro_over_plain": macro_step / plain_step,
            "plain_tokens_per_second": batch / plain_step,
            "smashed_tokens_per_second": batch * num_tokens / macro_step,
            "speedup": num_tokens * plain_step / macro_step,
            "speedup_in_processor_time": num_tokens * plain_cpu / macro_cpu,
            "ceiling": ceiling(model, num_tokens),
            "plain_kv_bytes": plain_run.entries * plain_run.entry_bytes,
            "smashed_kv_bytes": smashed_run.entries * smashed_run.entry_bytes,
            "plain_cache_bytes": plain_run.cache_bytes,
            "smashed_cache_bytes": smashed_run.cache_bytes,
        }
        rows.append(row)
        sys.stderr.write(" ".join(f"{k}={v:.4g}" for k, v in row.items()) + "\n")
    return rows


def main() -> None:
    """Measure every combination and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    base = load_model(args.model, dtype=getattr(torch, args.dtype), device=args.device)
    tokenizer = load_tokenizer(args.model)
    plain = PlainDecoder(base, tokenizer)
    geometry = adapter_for(base.config).geometry(base.config)
    rows = []
    for num_tokens in args.lengths:
        config = SmashConfig.paper(base.config, geometry, max_segment=max(args.lengths))
        config.stop_head = "linear"
        model = forced(SmashModel.graft(base, config), num_tokens)
        rows += compare(model, plain, SmashDecoder(model, tokenizer), num_tokens, args)
    finish("decode", {"rows": rows, "threads": torch.get_num_threads()}, args, args.seed)


if __name__ == "__main__":
    main()
