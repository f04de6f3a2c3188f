"""Speed of all ways to decode one model, on prompts of any kind, each way in its turn.

    transformers   `generate` of transformers: greedy, one token a step
    lookup         the same with prompt lookup of 10 tokens; it answers one prompt at a time
    ar             ours, one token a step
    lossless       ours, several

Ways take turns group by group: so many prompts of a domain as are answered at once (where a domain
has fewer, they come again).  What is reported of a way is the median, over groups and repeats, of
its tokens a second over those of `transformers` on the same group; the same by processor time,
which other work on the machine disturbs less; and tokens a forward of the model.  When answers are
drawn (`--temperature`), ratios to `ar` alone compare equal tokens.

    python benchmarks/speed.py --prompts chat.jsonl --batches 1 4 16 64 --output results/speed.json

Each line of the file has a prompt (`prompt`, `messages`, or any layout that training takes) and
perhaps its `domain`.  Without a file: examples/questions.jsonl, which nothing was trained on.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from lightstride.checkpoint import base_of, open_decoder
from lightstride.data.prompts import read_prompts
from lightstride.errors import ConfigError, LightstrideError
from lightstride.generate import Decoder, Settings, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.generate.rows import ends_of
from lightstride.smash.decode.costs import costs_of
from output import add_output, finish, path_or_name

QUESTIONS = Path(__file__).parents[1] / "examples" / "questions.jsonl"
PLAIN, LOOKUP, AR, LOSSLESS = WAYS = ("transformers", "lookup", "ar", "lossless")
LOOKUP_TOKENS = 10
WARM_TOKENS = 24
ALL = "all"

Tokens = tuple[int, ...]
Way = Callable[[Sequence[Tokens]], "Run"]


@dataclass(frozen=True)
class Run:
    """Answers to one group of prompts by one way, and what they took."""

    answers: list[Tokens]
    steps: int
    """Forwards of the model that brought tokens, summed over rows."""
    seconds: float
    processor_seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.answers))


@dataclass
class Clock:
    """Wall and processor time since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)

    def read(self) -> tuple[float, float]:
        """Seconds of both."""
        return time.perf_counter() - self.wall, time.process_time() - self.processor


def transformers_way(
    model: PreTrainedModel, ends: frozenset[int], flags: argparse.Namespace, lookup: int | None
) -> Way:
    """transformers' own `generate`."""
    config = GenerationConfig(
        max_new_tokens=flags.new_tokens,
        do_sample=flags.temperature > 0,
        **({"temperature": flags.temperature, "top_k": 0} if flags.temperature else {}),
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        prompt_lookup_num_tokens=lookup,
    )
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    def answer(prompts: Sequence[Tokens]) -> Run:
        width = max(map(len, prompts))
        ids_BL = torch.tensor([[0] * (width - len(each)) + [*each] for each in prompts])
        mask_BL = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        calls[0] = 0
        handle = model.register_forward_hook(count)
        clock = Clock()
        found = model.generate(
            ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),
            generation_config=config,
        )
        seconds = clock.read()
        handle.remove()
        assert isinstance(found, torch.Tensor)
        answers = [up_to_end(row, ends) for row in found[:, width:].tolist()]
        steps = calls[0] if len(prompts) == 1 else sum(map(len, answers))
        return Run(answers, steps, *seconds)

    return answer


def up_to_end(tokens: Sequence[int], ends: frozenset[int]) -> Tokens:
    """An answer without what is padded behind its end token."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: end + 1])


def own_way(decoder: Decoder, settings: Settings) -> Way:
    """A mode of our own decoder."""

    def answer(prompts: Sequence[Tokens]) -> Run:
        clock = Clock()
        answers = generate(decoder, prompts, settings)
        seconds = clock.read()
        return Run([each.tokens for each in answers], sum(a.macro_steps for a in answers), *seconds)

    return answer


def ways_of(decoder: Decoder, flags: argparse.Namespace) -> dict[str, Way]:
    """Every way that was asked for, by its name."""
    base = base_of(decoder)
    ends = ends_of(base, decoder.tokenizer)
    asked = Settings(
        max_new_tokens=flags.new_tokens, temperature=flags.temperature, mode="ar", seed=flags.seed
    )
    lossless = Settings(
        max_new_tokens=flags.new_tokens,
        temperature=flags.temperature,
        mode="lossless",
        seed=flags.seed,
    )
    found: dict[str, Way] = {
        PLAIN: transformers_way(base, ends, flags, None),
        LOOKUP: transformers_way(base, ends, flags, LOOKUP_TOKENS),
        AR: own_way(decoder, asked),
        LOSSLESS: own_way(decoder, lossless),
    }
    return {name: found[name] for name in flags.ways}


def groups_of(prompts: Sequence[Tokens], batch: int) -> list[list[Tokens]]:
    """Groups of `batch` prompts, the first ones again where the last group has too few."""
    count = -(-len(prompts) // batch)
    endless = itertools.cycle(prompts)
    return [[next(endless) for _ in range(batch)] for _ in range(count)]


def take_turns(
    ways: Mapping[str, Way], prompts: Sequence[Tokens], batch: int, repeats: int
) -> dict[str, list[Run]]:
    """Runs of each way over all groups, so many times; the first way of a group changes."""
    names = [name for name in ways if batch == 1 or name != LOOKUP]
    found: dict[str, list[Run]] = {name: [] for name in names}
    turn = itertools.count()
    for _ in range(repeats):
        for group in groups_of(prompts, batch):
            first = next(turn) % len(names)
            for name in [*names[first:], *names[:first]]:
                found[name].append(ways[name](group))
    return found


def ratio(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
    """Tokens a second over those of another way: medians over groups, and the lowest."""
    pairs = list(zip(runs, others, strict=True))
    wall = [(a.num_tokens / a.seconds) / (b.num_tokens / b.seconds) for a, b in pairs]
    processor = [
        (a.num_tokens / a.processor_seconds) / (b.num_tokens / b.processor_seconds)
        for a, b in pairs
    ]
    return {
        "wall": round(statistics.median(wall), 4),
        "processor": round(statistics.median(processor), 4),
        "least_processor": round(min(processor), 4),
    }


def summary(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, object]]:
    """What is reported of each way."""
    found: dict[str, dict[str, object]] = {}
    for name, mine in runs.items():
        tokens = sum(run.num_tokens for run in mine)
        each: dict[str, object] = {
            "tokens": tokens,
            "tokens_per_step": round(tokens / sum(run.steps for run in mine), 4),
            "tokens_per_second": round(tokens / sum(run.seconds for run in mine), 2),
            "tokens_per_processor_second": round(
                tokens / sum(run.processor_seconds for run in mine), 2
            ),
        }
        for other in (PLAIN, LOOKUP, AR):
            if other in runs and other != name:
                each[f"over_{other}"] = ratio(mine, runs[other])
        if AR in runs and name != AR:
            pairs = list(zip(mine, runs[AR], strict=True))
            equal = [a == b for x, y in pairs for a, b in zip(x.answers, y.answers, strict=True)]
            each["same_as_ar"] = round(statistics.mean(equal), 4)
        found[name] = each
    return found


def measure(
    ways: Mapping[str, Way], domains: Mapping[str, Sequence[Tokens]], flags: argparse.Namespace
) -> dict[str, object]:
    """All numbers, by domain and batch; `all` pools the groups of every domain."""
    numbers: dict[str, dict[str, object]] = {domain: {} for domain in [*domains, ALL]}
    for batch in flags.batches:
        pooled: dict[str, list[Run]] = {}
        for domain, prompts in domains.items():
            runs = take_turns(ways, prompts, batch, flags.repeats)
            numbers[domain][f"batch{batch}"] = summary(runs)
            for name, mine in runs.items():
                pooled.setdefault(name, []).extend(mine)
            report(domain, batch, runs)
        numbers[ALL][f"batch{batch}"] = summary(pooled)
        report(ALL, batch, pooled)
    return {"domains": numbers, "prompts": {name: len(each) for name, each in domains.items()}}


def report(domain: str, batch: int, runs: Mapping[str, Sequence[Run]]) -> None:
    """One line a way, for who waits."""
    for name, each in summary(runs).items():
        over = each.get(f"over_{PLAIN}") or {"wall": 1.0, "processor": 1.0}
        assert isinstance(over, dict)
        sys.stderr.write(
            f"  {domain:10} batch {batch:3} {name:12} {each['tokens_per_step']:6.3f} tokens a step "
            f"{each['tokens_per_processor_second']:8.1f} tokens a processor second "
            f"{over['processor']:.2f}x ({over['wall']:.2f}x wall)\n"
        )


def domains_of(decoder: Decoder, flags: argparse.Namespace) -> dict[str, list[Tokens]]:
    """The prompts as tokens, by domain, so many of each as were asked for."""
    found: dict[str, list[Tokens]] = {}
    for prompt in read_prompts([str(each) for each in flags.prompts or [QUESTIONS]]):
        mine = found.setdefault(prompt.domain, [])
        if flags.per_domain is None or len(mine) < flags.per_domain:
            messages = [message.as_dict() for message in prompt.messages]
            mine.append(tuple(chat_tokens(decoder.tokenizer, messages)))
    wanted = flags.domains or [*found]
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ConfigError(f"no prompt is of the domain {missing[0]}: there are {', '.join(found)}")
    return {domain: found[domain] for domain in wanted}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-smash", type=path_or_name)
    parser.add_argument(
        "--prompts", nargs="+", type=path_or_name, metavar="FILE", help="prompts as JSON lines"
    )
    parser.add_argument("--domains", nargs="+", help="these domains of them alone")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain (default: all)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--kv", type=float, metavar="BUDGET", help="ours on the memory plan of this budget"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    return parser.parse_args()


def main() -> int:
    """Measure all ways on all prompts; the exit code."""
    flags = parse()
    try:
        decoder = open_decoder(
            str(flags.model), dtype=getattr(torch, flags.dtype), device=flags.device, kv=flags.kv
        )
        domains = domains_of(decoder, flags)
        ways = ways_of(decoder, flags)
        costs_of(base_of(decoder)).complete()  # once a machine, so not a cost of any answer
        brief = argparse.Namespace(**{**vars(flags), "new_tokens": WARM_TOKENS})
        for way in ways_of(decoder, brief).values():
            way(next(iter(domains.values()))[:1])
        numbers = measure(ways, domains, flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("speed", {**numbers, "threads": torch.get_num_threads()}, flags, flags.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
