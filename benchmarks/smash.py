"""What a smashed model gives on prompts it was never trained on, domain by domain and mode by mode.

    tokens_per_step            tokens over forwards of the base
    kv_per_token               KV entries stored over tokens
    nats_per_token_over_base   mean negative log-likelihood of the answers under the base, less that
                               of the base's own greedy answers
    leading                    share of the base's greedy answer before the first token that differs
    aligned                    share of its tokens that the answer has too, in the same order
    same                       share of answers that are the base's, token for token
    speedup                    tokens per second over the plain decoder's, on the same prompts in
                               turn; median over repeats, in wall time and in processor time

`ceilings` says what segmentation rules and ideal drafts allow on the base's greedy answers.

    python benchmarks/smash.py my-smashed --chat mt_bench.jsonl.gz dolly.jsonl.gz \
        --maths gsm8k_test.jsonl.gz --code humaneval.jsonl.gz --trained-on work \
        --output results/smash.json
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch

from lightstride.checkpoint import open_decoder
from lightstride.config.decoding import MODES
from lightstride.data.prompts import Prompt, read_prompts
from lightstride.errors import ConfigError, LightstrideError
from lightstride.generate import Decoder, Generation, PlainDecoder, Settings, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.smash.data.answers import Answer, read_answers
from lightstride.smash.data.ceiling import ceilings
from lightstride.smash.data.scores import Scores, batches_of, score_batch
from lightstride.smash.data.self_prompts import self_prompts
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel
from output import add_output, finish, path_or_name

DOMAINS = ("chat", "maths", "code")
PLAIN = "plain"
BATCH_TOKENS = 4096
ORACLE_SEGMENTS = (4, 8)

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """Answers to some prompts, and what they took."""

    answers: list[Generation]
    seconds: float
    processor_seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers)


def timed(decoder: Decoder, prompts: Sequence[Tokens], settings: Settings) -> Timed:
    """Answer some prompts together."""
    wall, processor = time.perf_counter(), time.process_time()
    answers = generate(decoder, prompts, settings)
    return Timed(answers, time.perf_counter() - wall, time.process_time() - processor)


def ways(model: SmashModel, flags: argparse.Namespace) -> dict[str, Settings]:
    """Every way of decoding that is measured, by its name in the result."""
    found = {}
    for mode in flags.modes or model.config.modes:
        for confidence in flags.confidences if mode == "trust" else [None]:
            name = mode if confidence is None else f"{mode}{round(100 * confidence)}"
            found[name] = Settings(
                max_new_tokens=flags.new_tokens, mode=mode, confidence=confidence
            )
    return found


def take_turns(
    decoders: Mapping[str, tuple[Decoder, Settings]],
    prompts: Sequence[Tokens],
    batch: int,
    repeats: int,
) -> dict[str, list[Timed]]:
    """For every way, one run over all prompts per repeat; ways take turns batch by batch."""
    found: dict[str, list[Timed]] = {name: [] for name in decoders}
    for repeat in range(repeats):
        runs: dict[str, list[Timed]] = {name: [] for name in decoders}
        for at in range(0, len(prompts), batch):
            for name, (decoder, settings) in decoders.items():
                runs[name].append(timed(decoder, prompts[at : at + batch], settings))
        for name, parts in runs.items():
            found[name].append(joined(parts))
            speed = found[name][-1].num_tokens / found[name][-1].seconds
            sys.stderr.write(f"  batch {batch} repeat {repeat} {name}: {speed:.1f} tokens/s\n")
    return found


def joined(parts: Sequence[Timed]) -> Timed:
    """Runs one after the other as one run."""
    return Timed(
        list(itertools.chain.from_iterable(part.answers for part in parts)),
        sum(part.seconds for part in parts),
        sum(part.processor_seconds for part in parts),
    )


def speeds(runs: Sequence[Timed], plain: Sequence[Timed]) -> dict[str, float]:
    """Tokens per second and what is gained over the plain decoder, medians over repeats."""
    pairs = list(zip(runs, plain, strict=True))
    return {
        "tokens_per_second": statistics.median(r.num_tokens / r.seconds for r in runs),
        "plain_tokens_per_second": statistics.median(p.num_tokens / p.seconds for p in plain),
        "speedup": statistics.median(
            (r.num_tokens / r.seconds) / (p.num_tokens / p.seconds) for r, p in pairs
        ),
        "speedup_in_processor_time": statistics.median(
            (r.num_tokens / r.processor_seconds) / (p.num_tokens / p.processor_seconds)
            for r, p in pairs
        ),
    }


def agreement(answers: Sequence[Tokens], greedy: Sequence[Tokens]) -> dict[str, float]:
    """How much of the base's greedy answers these have: leading, aligned, same."""
    leading = aligned = 0
    for answer, base in zip(answers, greedy, strict=True):
        equal = [a == b for a, b in zip(answer, base, strict=False)]
        leading += sum(itertools.takewhile(bool, equal))
        matcher = SequenceMatcher(None, base, answer, autojunk=False)
        aligned += sum(block.size for block in matcher.get_matching_blocks())
    total = sum(map(len, greedy))
    same = statistics.mean(a == b for a, b in zip(answers, greedy, strict=True))
    return {"leading": leading / total, "aligned": aligned / total, "same": same}


def scores_of(
    model: SmashModel, prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> list[Scores]:
    """What the base thinks of every token of the answers."""
    rows = [
        Answer(str(n), "", prompt, answer, sampled=False, finish="")
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    batches = batches_of(rows, BATCH_TOKENS)
    return [scores for batch in batches for scores in score_batch(model.base, batch, 0)]


def nats(scores: Sequence[Scores]) -> float:
    """Mean negative log-likelihood per token."""
    return -float(torch.cat([each["log_probability"] for each in scores]).double().mean())


def tokens_of(answers: Sequence[Generation]) -> list[Tokens]:
    """The tokens of each answer."""
    return [answer.tokens for answer in answers]


def steps_and_entries(answers: Sequence[Generation]) -> dict[str, float]:
    """Tokens a forward of the base brought, and KV entries they took."""
    num_tokens = sum(len(answer.tokens) for answer in answers)
    return {
        "tokens_per_step": num_tokens / sum(answer.macro_steps for answer in answers),
        "kv_per_token": sum(answer.kv_entries for answer in answers) / num_tokens,
    }


def quality(
    model: SmashModel, prompts: Sequence[Tokens], answers: Sequence[Generation], base: "Base"
) -> dict[str, float]:
    """What one way's answers cost and how near they are to the base's."""
    own = nats(scores_of(model, prompts, tokens_of(answers)))
    return {
        **steps_and_entries(answers),
        "nats_per_token": own,
        "nats_per_token_over_base": own - base.nats_per_token,
        **agreement(tokens_of(answers), base.answers),
    }


@dataclass(frozen=True)
class Base:
    """The base's greedy answers."""

    answers: list[Tokens]
    scores: list[Scores]

    @property
    def nats_per_token(self) -> float:
        return nats(self.scores)


def limits(model: SmashModel, base: Base) -> dict[str, dict[str, float]]:
    """What segmentation rules and ideal drafts allow, by the most tokens of a segment."""
    chosen = model.micro_vocabulary_M
    draftable = None if chosen is None else set(chosen.tolist())
    return {
        f"max_segment_{most}": ceilings(
            [each["entropy"].tolist() for each in base.scores],
            base.answers,
            vocab_size=model.config.vocab_size,
            max_segment=most,
            draftable=draftable,
        )
        for most in sorted({model.config.max_segment, *ORACLE_SEGMENTS})
    }


def measure(
    smashed: SmashDecoder, prompts: Sequence[Tokens], flags: argparse.Namespace
) -> dict[str, object]:
    """All numbers of one domain; those that do not depend on the batch are of the smallest."""
    model = smashed.model
    assert isinstance(model, SmashModel)
    greedy = Settings(max_new_tokens=flags.new_tokens)
    plain: Decoder = PlainDecoder(model.base, smashed.tokenizer)
    decoders = {PLAIN: (plain, greedy)}
    asked = ways(model, flags)
    decoders |= {name: (smashed, settings) for name, settings in asked.items()}
    runs = {
        batch: take_turns(decoders, prompts, batch, flags.repeats)
        for batch in sorted(flags.batches)
    }
    whole = {name: each[0].answers for name, each in runs[min(flags.batches)].items()}
    answers = tokens_of(whole[PLAIN])
    base = Base(answers, scores_of(model, prompts, answers))
    modes: dict[str, dict[str, object]] = {}
    for name in asked:
        modes[name] = {**quality(model, prompts, whole[name], base)}
        for batch, each in runs.items():
            modes[name][f"batch{batch}"] = {
                **speeds(each[name], each[PLAIN]),
                **steps_and_entries(each[name][0].answers),
            }
    return {
        "num_prompts": len(prompts),
        "num_tokens": sum(map(len, answers)),
        "base_nats_per_token": base.nats_per_token,
        "modes": modes,
        "oracle": limits(model, base),
    }


def held_out(
    smashed: SmashDecoder,
    sources: Sequence[Path | str],
    flags: argparse.Namespace,
    trained_on: set[str],
) -> list[Tokens]:
    """The first prompts of a domain's sources, taking the same number from each."""
    share = -(-flags.prompts // len(sources))
    found: list[Tokens] = []
    for name in sources:
        fresh = [each for each in read(smashed, str(name), flags) if each.id not in trained_on]
        for prompt in fresh[:share]:
            messages = [message.as_dict() for message in prompt.messages]
            found.append(tuple(chat_tokens(smashed.tokenizer, messages)))
    if not found:
        raise ConfigError(
            f"all prompts of {', '.join(map(str, sources))} were trained on; give others"
        )
    return found[: flags.prompts]


def read(smashed: SmashDecoder, source: str, flags: argparse.Namespace) -> list[Prompt]:
    """The prompts of one source, in an order drawn by the seed."""
    if source == "self":
        model = smashed.model.base
        return self_prompts(model, smashed.tokenizer, flags.prompts, seed=flags.seed + 1)
    return read_prompts(source, limit=sys.maxsize, seed=flags.seed)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a smashed model", type=path_or_name)
    for domain in DOMAINS:
        help_text = "held-out prompts: files, folders, hub ids, or self"
        parser.add_argument(
            f"--{domain}", metavar="SOURCE", nargs="+", type=path_or_name, help=help_text
        )
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--trained-on", type=Path, help="work folder whose prompts are left out")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: the model's")
    confidences = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    parser.add_argument("--confidences", type=float, nargs="+", default=confidences)
    parser.add_argument("--prompts", type=int, default=64, help="prompts a domain")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    return parser.parse_args()


def main() -> int:
    """Measure every domain that has a source; the exit code."""
    flags = parse()
    try:
        sources = {d: getattr(flags, d) for d in flags.domains if getattr(flags, d)}
        if not sources:
            raise ConfigError("no prompts were given: use --chat, --maths or --code")
        decoder = open_decoder(
            str(flags.model), dtype=getattr(torch, flags.dtype), device=flags.device
        )
        if not isinstance(decoder, SmashDecoder):
            raise ConfigError(f"{flags.model} is not a smashed model")
        trained_on = (
            {each.id for each in read_answers(flags.trained_on)} if flags.trained_on else set()
        )
        domains = {}
        for domain, source in sources.items():
            prompts = held_out(decoder, source, flags, trained_on)
            sys.stderr.write(f"{domain}: {len(prompts)} prompts\n")
            timed(decoder, prompts[:1], Settings(max_new_tokens=8, confidence=0.5))
            domains[domain] = measure(decoder, prompts, flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("smash", {"domains": domains, "threads": torch.get_num_threads()}, flags, flags.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
