"""What an accelerator makes of 8B shapes with random weights: statistics, a generation, decoding.

    python benchmarks/gpu.py                       on the accelerator; results/gpu-NAME.json
    python benchmarks/gpu.py --tiny --device cpu   the same of a toy, to see that it runs

One supernet of three levels a site on 4,096 tokens, one generation of twelve candidates on as
many, and decoding of the dense, the uniformly cut and the smashed model (random grafts, four
tokens a step).  Nothing is learned about quality.  Peak memory is what the allocator counted.
The last line of stdout is one JSON document.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from decode import differences, forced
from lightstride.bench.machine import PeakMemory
from lightstride.generate import Decoder, PlainDecoder, Settings
from lightstride.models.device import synchronize
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.fitness import Fitness
from lightstride.prune.rounds import RoundRunner, RoundSettings
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.targets import TARGETS
from lightstride.search.evaluation_log import Sample
from lightstride.search.moves import Moves
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig
from output import finish
from random_llama import Sizes, llama_config

SHAPES: Mapping[str, tuple[Sizes, int]] = {
    "8b": ((32, 4096, 32, 8, 14_336), 128_256),
    "tiny": ((2, 32, 4, 2, 64), 260),
}
"""Sizes and vocabulary."""
TOKENS = {"8b": (4096, 512), "tiny": (64, 16)}
"""Of the text, and of a window."""
CANDIDATES, SHARE, SEED, SEGMENT = 12, 0.5, 0, 4
NO_ACCELERATOR = "gpu: there is no accelerator on this machine; give --tiny --device cpu to try it"


def random_llama(name: str, device: str) -> PreTrainedModel:
    """A Llama of random weights, in bf16 on an accelerator."""
    config = llama_config(*SHAPES[name])
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model: PreTrainedModel = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    return model


def timed(call: Callable[[], object], device: torch.device) -> tuple[object, dict[str, object]]:
    """What a call gives, its seconds and the bytes it took at its peak."""
    memory = PeakMemory(device)
    memory.start()
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, {"seconds": time.perf_counter() - start, "peak_bytes": memory.stop()}


def pruned(model: PreTrainedModel, name: str, work: Path) -> tuple[PreTrainedModel, dict]:
    """The uniformly cut model, and what statistics and one generation took."""
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    cost, (num_tokens, window) = parameter_cost(geometry), TOKENS[name]
    windows_NL = torch.randint(geometry.vocab_size, (num_tokens // window, window))
    runner = RoundRunner(
        source=Resident(model),
        space=build_space(geometry, TARGETS["any"], cost),
        dense_cost=dense_cost(geometry, cost),
        calibration_NL=windows_NL,
        search_NL=windows_NL,
        work=work,
        settings=RoundSettings(num_levels=3),
    )
    centre = runner.centre(SHARE)
    space = runner.narrowed(1, centre)
    levels = runner.shapes_of([space])
    supernet, statistics = timed(
        lambda: runner.supernet_for(work / "net", windows_NL, levels, centre), model.device
    )
    moves, random = Moves(space, space.largest), Random(SEED)
    plans = [
        moves.plan(tuple(random.randrange(len(costs)) for costs in moves.costs))
        for _ in range(CANDIDATES)
    ]
    fitness = Fitness(model, adapter, windows_NL, supernet.load)
    values, generation = timed(lambda: fitness(plans, Sample(num_tokens, 0)), model.device)
    chosen = {site: supernet.load(site, shape) for site, shape in centre.shapes.items()}
    numbers = {"statistics": statistics, "generation": generation | {"fitness": values}}
    return materialize(model, adapter, chosen), numbers


def decoding(decoder: Decoder, name: str, device: torch.device) -> dict[str, object]:
    """Tokens a second of eight answers at once, steps and peak memory."""
    vocabulary, new_tokens = SHAPES[name][-1], 128 if name == "8b" else 8
    prompts = torch.randint(5, vocabulary, (8, TOKENS[name][1])).tolist()
    settings = Settings(max_new_tokens=new_tokens, ignore_end_tokens=True, confidence=0.5)
    moments: list[float] = []

    def answer() -> None:
        for _ in decoder.steps(prompts, settings):
            synchronize(device)
            moments.append(time.perf_counter())

    _, numbers = timed(answer, device)
    steps = differences(moments)
    return numbers | {
        "step_seconds": sorted(steps)[len(steps) // 2],
        "tokens_per_second": len(prompts) * new_tokens / float(str(numbers["seconds"])),
    }


def measure(name: str, device: str) -> dict[str, object]:
    """All numbers of one size on one device."""
    model = random_llama(name, device)
    tokens = {str(number): number for number in range(SHAPES[name][-1])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(tokens, "0")))
    with tempfile.TemporaryDirectory() as folder:
        smaller, numbers = pruned(model, name, Path(folder))
    geometry = adapter_for(model.config).geometry(model.config)
    config = SmashConfig.paper(model.config, geometry, max_segment=SEGMENT)
    config.stop_head, config.micro_layers = "linear", 1
    decoders: dict[str, Callable[[], Decoder]] = {
        "dense": lambda: PlainDecoder(model, tokenizer),
        "cut": lambda: PlainDecoder(smaller, tokenizer),
        "smashed": lambda: SmashDecoder(
            forced(SmashModel.graft(model, config), SEGMENT), tokenizer
        ),
    }
    for kind, build in decoders.items():
        numbers[f"decode {kind}"] = decoding(build(), name, model.device)
        print(kind, numbers[f"decode {kind}"], file=sys.stderr)
    hardware = torch.cuda.get_device_name() if model.device.type == "cuda" else device
    return {"shape": name, "device": hardware, **numbers}


def main() -> int:
    """Run the benchmark; 2 where there is no accelerator and no other device was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a toy instead of 8B shapes")
    parser.add_argument("--device", help="without it, the accelerator")
    parser.add_argument("--check", action="store_true", help="only look for an accelerator")
    parser.add_argument("--output", type=Path, help="default: results/gpu-NAME.json")
    flags = parser.parse_args()
    found = torch.accelerator.current_accelerator(check_available=True)
    device = flags.device or (found.type if found is not None else None)
    if device is None:
        print(NO_ACCELERATOR, file=sys.stderr)
        return 2
    if flags.check:
        return 0
    numbers = measure("tiny" if flags.tiny else "8b", device)
    label = str(numbers["device"]).lower().replace(" ", "-")
    flags.output = flags.output or Path("results") / f"gpu-{label}.json"
    finish("gpu", numbers, flags, SEED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
