"""Whether `lossless` on a memory plan says what the model says one token at a time on that plan.

Both answer the same prompts, greedily and in fp32, so many at a time.  Where two answers part, the
slow twin (`memory/masked.py`: the whole text under the plan's mask) says how far apart the two
tokens were; a lead below 0.001 in the logits is a near tie, which rounding decides.  `full cache`
counts answers that the plan leaves as they are without it.

    python benchmarks/memory_exact.py --prompts prompts.jsonl --output results/memory-exact.json

It stops where the processor time that was given is over, and says how many prompts that were.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from exact import in_turn, parts_of
from lightstride.checkpoint import base_of, open_decoder, with_budget
from lightstride.errors import LightstrideError
from lightstride.generate import Decoder, Mode, Settings, generate
from lightstride.memory.cache import Memory
from lightstride.memory.fitness import logits_of
from lightstride.memory.masked import masked_hidden
from lightstride.smash.decode.costs import costs_of
from lightstride.smash.decode.decoder import SmashDecoder
from output import add_output, finish, path_or_name
from speed import Tokens, domains_of

TIE = 1e-3
"""Most that a near tie's likeliest token leads by, in logits."""


@dataclass
class Tally:
    """What was seen so far."""

    prompts: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    same: int = 0
    full_same: int = 0
    tokens: int = 0
    steps: int = 0
    """Of `lossless`."""
    leads: list[float] = field(default_factory=list)
    """By how much the slow twin prefers one of the tokens at which answers part."""
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """What is reported."""
        return {
            "prompts": self.prompts,
            "prompt_tokens": [min(self.prompt_tokens), max(self.prompt_tokens)],
            "same": self.same,
            "near_ties": sum(lead < TIE for lead in self.leads),
            "leads": self.leads,
            "same_as_full_cache": self.full_same,
            "tokens": self.tokens,
            "tokens_per_step": round(self.tokens / max(1, self.steps), 4),
            "processor_seconds": {way: round(t, 1) for way, t in self.seconds.items()},
        }


def lead(decoder: Decoder, memory: Memory, before: Tokens, one: int, other: int) -> float:
    """How far apart the logits of two tokens are after a text under a plan."""
    model = base_of(decoder)
    tokens_T = torch.tensor(before, device=model.device)
    with torch.inference_mode():
        last_1D = masked_hidden(model, tokens_T, memory.plan, memory.scores)[-1:]
        logits_V = logits_of(model, last_1D)[0].float()
    return float((logits_V[one] - logits_V[other]).abs())


def compare(
    decoder: Decoder,
    memory: Memory,
    full: Decoder,
    prompts: Sequence[Tokens],
    flags: argparse.Namespace,
    tally: Tally,
) -> None:
    """Answer some prompts by all ways and note what is the same."""
    answers = {}
    ways: dict[str, tuple[Decoder, Mode]] = {
        "ar": (decoder, "ar"), "lossless": (decoder, "lossless"), "full": (full, "ar")
    }  # fmt: skip
    for way, (each, mode) in ways.items():
        start = time.process_time()
        settings = Settings(
            max_new_tokens=flags.new_tokens, mode=mode, seed=flags.seed, ignore_end_tokens=True
        )
        answers[way] = generate(each, prompts, settings)
        spent = time.process_time() - start
        tally.seconds[way] = tally.seconds.get(way, 0.0) + spent
    for index, prompt in enumerate(prompts):
        plain, drafted = answers["ar"][index].tokens, answers["lossless"][index].tokens
        tally.prompts += 1
        tally.prompt_tokens.append(len(prompt))
        tally.tokens += len(drafted)
        tally.steps += answers["lossless"][index].macro_steps
        tally.full_same += plain == answers["full"][index].tokens
        tally.same += plain == drafted
        if plain != drafted:
            pairs = enumerate(zip(plain, drafted, strict=True))
            parted = next(place for place, (one, other) in pairs if one != other)
            before = (*prompt, *plain[:parted])
            tally.leads.append(lead(decoder, memory, before, plain[parted], drafted[parted]))


def measure(flags: argparse.Namespace) -> dict[str, object]:
    """Compare until all prompts have had their turn or the time is over."""
    source = str(flags.model)
    decoder = open_decoder(source, kv=flags.kv)
    assert isinstance(decoder, SmashDecoder)
    assert decoder.memory is not None
    full = with_budget(decoder, source, 1.0, "model")
    costs_of(base_of(decoder)).complete()
    tally, start = Tally(), time.process_time()
    for part in parts_of(in_turn(domains_of(decoder, flags)), flags.rows):
        compare(decoder, decoder.memory, full, part, flags, tally)
        spent = time.process_time() - start
        sys.stderr.write(f"  {tally.same} of {tally.prompts} the same; {spent:.0f} s\n")
        if spent > 60 * flags.minutes:
            break
    return {f"{flags.kv:g}": tally.summary(), "threads": torch.get_num_threads()}


def main() -> int:
    """Compare the answers; the exit code is 1 where two part and no near tie is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-smash", type=path_or_name)
    parser.add_argument("--kv", default=0.5, type=float, help="the plan's budget")
    parser.add_argument("--prompts", nargs="+", type=path_or_name, metavar="FILE")
    parser.add_argument("--domains", nargs="+", help="these domains of them alone")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain (default: all)")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--rows", type=int, default=8, help="prompts answered at once")
    parser.add_argument("--minutes", type=float, default=30.0, help="processor time, at most")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    flags = parser.parse_args()
    try:
        numbers = measure(flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("memory-exact", numbers, flags, flags.seed)
    found = numbers[f"{flags.kv:g}"]
    assert isinstance(found, dict)
    return int(any(each >= TIE for each in found["leads"]))


if __name__ == "__main__":
    sys.exit(main())
