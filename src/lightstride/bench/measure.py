"""One timed run of a decoder, and the figures of several such runs together.

A run answers a batch of random prompts greedily to a fixed length; end tokens are ignored, so
that every run does the same work.  Models that are compared run in turn, so that what else the
machine does meets both; what is reported is the median of the runs and their lowest and highest.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from transformers import PreTrainedModel

from lightstride.bench.machine import Machine, PeakMemory
from lightstride.errors import ConfigError
from lightstride.generate import Decoder, Settings
from lightstride.models.device import synchronize


@dataclass(frozen=True)
class Load:
    """One load: sequences at once, tokens in each prompt and in each answer."""

    batch: int
    prompt: int
    new_tokens: int


@dataclass(frozen=True)
class Weights:
    """Sizes that say how much a step must read and compute."""

    parameters: int
    total_bytes: int
    read_bytes: int
    """Read in every step: all but an embedding that is only looked up."""
    block_weights: int
    """Entries of the matrices that every prompt token is multiplied with."""
    head_weights: int


@dataclass(frozen=True)
class Run:
    """One timed run."""

    first_seconds: float
    decode_seconds: float
    tokens: int
    """Tokens after the first of each row."""
    steps: int
    """Steps of the base model after the first."""
    kv_bytes: int
    """Used by all rows at the end, prompts included."""
    peak_bytes: int | None


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median, lowest and highest."""
        return cls(median(values), min(values), max(values))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return dict(vars(self))


def measure_weights(model: PreTrainedModel) -> Weights:
    """Sizes of a model, counted from its tensors."""
    parameters = list(model.parameters())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, torch.nn.Linear)
    assert isinstance(embedding, torch.nn.Module)
    total = sum(p.numel() * p.element_size() for p in parameters)
    lookup = next(embedding.parameters())
    tied = lookup.data_ptr() == head.weight.data_ptr()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return Weights(
        parameters=sum(p.numel() for p in parameters),
        total_bytes=total,
        read_bytes=total if tied else total - lookup.numel() * lookup.element_size(),
        block_weights=sum(linear.weight.numel() for linear in linears),
        head_weights=head.weight.numel(),
    )


def random_prompts(model: PreTrainedModel, load: Load, seed: int) -> list[list[int]]:
    """Prompts of random tokens, the same for the same seed."""
    length = getattr(model.config, "max_position_embeddings", None)
    if isinstance(length, int) and load.prompt + load.new_tokens > length:
        raise ConfigError(
            f"--prompt {load.prompt} and --new-tokens {load.new_tokens} are more than the model's "
            f"context of {length}"
        )
    draw = random.Random(seed)
    top = model.config.vocab_size
    return [[draw.randrange(top) for _ in range(load.prompt)] for _ in range(load.batch)]


def run_once(decoder: Decoder, load: Load, seed: int) -> Run:
    """Answer random prompts once and time it."""
    prompts = random_prompts(decoder.model, load, seed)
    settings = Settings(max_new_tokens=load.new_tokens, ignore_end_tokens=True, seed=seed)
    device = decoder.model.device
    memory = PeakMemory(device)
    memory.start()
    synchronize(device)
    start = time.perf_counter()
    counts, moments, last = [], [], None
    for step in decoder.steps(prompts, settings):
        synchronize(device)
        moments.append(time.perf_counter())
        counts.append(sum(map(len, step.tokens)))
        last = step
    assert last is not None
    return Run(
        first_seconds=moments[0] - start,
        decode_seconds=moments[-1] - moments[0],
        tokens=sum(counts[1:]),
        steps=len(counts) - 1,
        kv_bytes=last.entry_bytes * sum(load.prompt + entries for entries in last.kv_entries),
        peak_bytes=memory.stop(),
    )


def run_in_turn(
    decoders: Sequence[Decoder], load: Load, *, repeats: int, seed: int
) -> list[list[Run]]:
    """Runs of each decoder, taken in turn after one of each that does not count."""
    runs: list[list[Run]] = [[] for _ in decoders]
    for repeat in range(repeats + 1):
        for decoder, mine in zip(decoders, runs, strict=True):
            run = run_once(decoder, load, seed)
            if repeat:
                mine.append(run)
    return runs


def summarize(
    runs: Sequence[Run], load: Load, weights: Weights, machine: Machine
) -> dict[str, object]:
    """All that is reported of one model under one load."""
    first = Spread.of([run.first_seconds for run in runs])
    decode = Spread.of([run.tokens / run.decode_seconds for run in runs])
    step_seconds = median(run.decode_seconds / run.steps for run in runs)
    kv_bytes = runs[0].kv_bytes
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    operations = 2 * load.batch * (load.prompt * weights.block_weights + weights.head_weights)
    return {
        "batch": load.batch,
        "prompt": load.prompt,
        "new_tokens": load.new_tokens,
        "first_token_seconds": first.as_dict(),
        "decode_tokens_per_second": decode.as_dict(),
        "tokens_per_step": runs[0].tokens / runs[0].steps / load.batch,
        "kv_bytes": kv_bytes,
        "peak_bytes": weights.total_bytes + max(peaks) if peaks else None,
        "share_of_matrix_rate": operations / first.median / machine.matrix_rate,
        "share_of_bandwidth": (weights.read_bytes + kv_bytes) / step_seconds / machine.bandwidth,
    }


def ratios(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, object]:
    """How many times faster the first model is, round by round: above 1 is better."""
    pairs = list(zip(runs, others, strict=True))
    return {
        "first_token": Spread.of([b.first_seconds / a.first_seconds for a, b in pairs]).as_dict(),
        "decode": Spread.of(
            [(a.tokens / a.decode_seconds) / (b.tokens / b.decode_seconds) for a, b in pairs]
        ).as_dict(),
        "kv_bytes": runs[0].kv_bytes / others[0].kv_bytes,
    }
