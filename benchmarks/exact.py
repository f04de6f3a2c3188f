"""Whether `--exact` gives one answer whatever is checked or answered beside it, prompt by prompt.

Each prompt is answered by `ar --exact` among others, so many at a time, and by `lossless --exact`
alone; every token must be the same.  With `--rounded` the same is counted without `--exact`, where
near ties may round differently.  It stops where the processor time that was given is over, and
says how many prompts were answered by then.

    python benchmarks/exact.py --prompts prompts.jsonl --new-tokens 32 --minutes 20 \\
        --output results/exact.json

Domains take turns, so that a run that stops early has seen all of them.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lightstride.checkpoint import base_of, open_decoder
from lightstride.errors import LightstrideError
from lightstride.generate import Decoder, Generation, Mode, Settings, generate
from lightstride.smash.decode.costs import costs_of
from output import add_output, finish, path_or_name
from speed import Tokens, domains_of


@dataclass
class Tally:
    """What was seen of one precision's answers so far."""

    prompts: int = 0
    same: int = 0
    tokens: int = 0
    """Of answers by `lossless`."""
    steps: int = 0
    near_ties: int = 0
    with_near_ties: int = 0
    """Answers with at least one."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Processor time by mode."""
    differing: list[int] = field(default_factory=list)
    """Numbers of the prompts whose answers differ."""

    def note(self, plain: Generation, drafted: Generation) -> None:
        """Compare two answers to one prompt."""
        if plain.tokens == drafted.tokens:
            self.same += 1
        else:
            self.differing.append(self.prompts)
        self.prompts += 1
        self.tokens += len(drafted.tokens)
        self.steps += drafted.macro_steps
        self.near_ties += drafted.near_ties
        self.with_near_ties += drafted.near_ties > 0

    def summary(self) -> dict[str, object]:
        """What is reported."""
        return {
            "prompts": self.prompts,
            "same": self.same,
            "differing": self.differing,
            "tokens": self.tokens,
            "tokens_per_step": round(self.tokens / max(1, self.steps), 4),
            "near_ties": self.near_ties,
            "with_near_ties": self.with_near_ties,
            "processor_seconds": {mode: round(t, 1) for mode, t in self.seconds.items()},
        }


def in_turn(domains: Mapping[str, Sequence[Tokens]]) -> list[Tokens]:
    """One prompt of each domain after the other, until all have had their turn."""
    rounds = itertools.zip_longest(*domains.values())
    return [prompt for each in rounds for prompt in each if prompt is not None]


def parts_of(prompts: Sequence[Tokens], size: int) -> Iterator[Sequence[Tokens]]:
    """So many prompts at a time."""
    return (prompts[start : start + size] for start in range(0, len(prompts), size))


def timed(
    decoder: Decoder, prompts: Sequence[Tokens], settings: Settings, tally: Tally
) -> list[Generation]:
    """Answers to these prompts together; their processor time is added to the tally."""
    start = time.process_time()
    found = generate(decoder, prompts, settings)
    assert settings.mode is not None
    before = tally.seconds.get(settings.mode, 0.0)
    tally.seconds[settings.mode] = before + time.process_time() - start
    return found


def compare(
    decoder: Decoder,
    prompts: Sequence[Tokens],
    flags: argparse.Namespace,
    tally: Tally,
    exact: bool,
) -> None:
    """Answer prompts by both modes and note what is the same."""

    def settings(mode: Mode) -> Settings:
        return Settings(
            max_new_tokens=flags.new_tokens,
            temperature=flags.temperature,
            mode=mode,
            exact=exact,
            seed=flags.seed,
        )

    plain = timed(decoder, prompts, settings("ar"), tally)
    drafted = [timed(decoder, [each], settings("lossless"), tally)[0] for each in prompts]
    for one, other in zip(plain, drafted, strict=True):
        tally.note(one, other)


def measure(
    decoder: Decoder, prompts: Sequence[Tokens], flags: argparse.Namespace
) -> dict[str, object]:
    """Compare until all prompts have had their turn or the time is over."""
    tallies = {"exact": Tally()} | ({"rounded": Tally()} if flags.rounded else {})
    start = time.process_time()
    for part in parts_of(prompts, flags.rows):
        for name, tally in tallies.items():
            compare(decoder, part, flags, tally, name == "exact")
        spent = time.process_time() - start
        counts = ", ".join(f"{name} {t.same} of {t.prompts}" for name, t in tallies.items())
        sys.stderr.write(f"  the same: {counts}; {spent:.0f} s of processor time\n")
        if spent > 60 * flags.minutes:
            break
    return {name: tally.summary() for name, tally in tallies.items()}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-smash", type=path_or_name)
    parser.add_argument("--prompts", nargs="+", type=path_or_name, metavar="FILE")
    parser.add_argument("--domains", nargs="+", help="these domains of them alone")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain (default: all)")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8, help="prompts that ar answers at once")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=20.0, help="processor time, at most")
    parser.add_argument("--rounded", action="store_true", help="count without --exact too")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    return parser.parse_args()


def main() -> int:
    """Compare the answers; the exit code is 1 where one with `--exact` differs."""
    flags = parse()
    try:
        decoder = open_decoder(
            str(flags.model), dtype=getattr(torch, flags.dtype), device=flags.device
        )
        prompts = in_turn(domains_of(decoder, flags))
        costs_of(base_of(decoder)).complete()
        numbers = measure(decoder, prompts, flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("exact", {**numbers, "threads": torch.get_num_threads()}, flags, flags.seed)
    return int(numbers["exact"]["same"] != numbers["exact"]["prompts"])  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
