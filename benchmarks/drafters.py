"""Drafters of one base against each other: trees of the same size, and of the size that pays.

Every smashed model answers the same prompts in turn: `lossless` without lookups with `--trees` of
so many tokens (1 is the first token alone), and with the size that pays by its own table of costs,
without and with lookups.  Reported are tokens a step, the median of tokens a second over `ar` of
the same model on the same prompt, the bytes of weights that one level of drafts reads, and how
long each learned.

    python benchmarks/drafters.py my-micro my-head --prompts held_out.jsonl --output drafters.json
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lightstride.checkpoint import base_of, open_decoder
from lightstride.errors import ConfigError, LightstrideError
from lightstride.generate import Decoder, Settings, generate
from lightstride.results import read_result
from lightstride.smash.decode.costs import costs_of
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.headed import HeadedDecoder
from output import add_output, finish
from speed import AR, WARM_TOKENS, Run, Tokens, Way, domains_of, own_way, summary, take_turns

PAYS, LOOKUPS = "pays", "lookups"


def level_bytes(decoder: Decoder) -> int:
    """Bytes of the weights that a level of drafts reads: the drafter, and its head's rows."""
    if isinstance(decoder, HeadedDecoder):
        weights = list(decoder.head.parameters())
    elif isinstance(decoder, SmashDecoder):
        body = decoder.model
        weights = [*body.micro.parameters(), *body.stop.parameters(), body.micro_head_MD]
    else:
        raise ConfigError("one of the models has no drafter: make it with lightstride smash")
    return sum(each.nbytes for each in {id(each): each for each in weights}.values())


def learned(folder: Path) -> dict[str, object] | None:
    """How long a drafter learned, and from how much, where its folder says so."""
    path = folder / "result.json"
    training = read_result(path)["numbers"].get("training") if path.exists() else None
    return training and {
        key: training[key] for key in ("seconds", "steps", "answers", "answer_tokens")
    }


def ways_of(decoder: Decoder, flags: argparse.Namespace, new_tokens: int) -> dict[str, Way]:
    """One token a step, trees of each size, and what pays."""

    def lossless(lookup: int, tree: int | None = None) -> Way:
        settings = Settings(mode="lossless", max_new_tokens=new_tokens, lookup=lookup, tree=tree)
        return own_way(decoder, settings)

    return {
        AR: own_way(decoder, Settings(mode="ar", max_new_tokens=new_tokens)),
        **{f"tree{size}": lossless(0, size) for size in flags.trees},
        PAYS: lossless(0),
        LOOKUPS: lossless(Settings().lookup),
    }


def measure(
    folders: Mapping[str, Path],
    decoders: Mapping[str, Decoder],
    domains: Mapping[str, Sequence[Tokens]],
    flags: argparse.Namespace,
) -> dict[str, object]:
    """Numbers of every model, by domain and way."""
    ways = {
        f"{name}/{way}": run
        for name, decoder in decoders.items()
        for way, run in ways_of(decoder, flags, flags.new_tokens).items()
    }
    found: dict[str, dict[str, object]] = {name: {} for name in decoders}
    for domain, prompts in domains.items():
        runs = take_turns(ways, prompts, 1, flags.repeats)
        for name in decoders:
            mine = {
                each.removeprefix(f"{name}/"): kept
                for each, kept in runs.items()
                if each.startswith(f"{name}/")
            }
            found[name][domain] = summary(mine)
            report(name, domain, mine)
    return {
        name: {
            "level_bytes": level_bytes(decoder),
            "learned": learned(folders[name]),
            "domains": found[name],
        }
        for name, decoder in decoders.items()
    }


def report(name: str, domain: str, runs: Mapping[str, Sequence[Run]]) -> None:
    """One line a way, for who waits."""
    for way, each in summary(runs).items():
        over = each.get(f"over_{AR}") or {"processor": 1.0}
        assert isinstance(over, dict)
        sys.stderr.write(
            f"  {domain:10} {name:12} {way:8} {each['tokens_per_step']:6.3f} tokens a step "
            f"{over['processor']:.2f}x ar\n"
        )


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="smashed models of one base")
    parser.add_argument("--prompts", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--domains", nargs="+", help="these domains of them alone")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain (default: all)")
    parser.add_argument("--trees", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    add_output(parser)
    return parser.parse_args()


def main() -> int:
    """Measure all drafters on all prompts; the exit code."""
    flags = parse()
    try:
        folders = {path.name: path for path in flags.models}
        if len(folders) < len(flags.models):
            raise ConfigError("two models have the same name; rename a folder")
        decoders = {
            name: open_decoder(str(path), dtype=getattr(torch, flags.dtype))
            for name, path in folders.items()
        }
        for decoder in decoders.values():
            level_bytes(decoder)
            costs_of(base_of(decoder)).complete()  # once a machine, so not a cost of any answer
        first = next(iter(decoders.values()))
        domains = domains_of(first, flags)
        for decoder in decoders.values():
            generate(
                decoder, next(iter(domains.values()))[:1], Settings(max_new_tokens=WARM_TOKENS)
            )
        numbers = measure(folders, decoders, domains, flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("drafters", {**numbers, "threads": torch.get_num_threads()}, flags, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
