"""What memory plans cost on documents: divergence from the full cache, teacher-forced, in fp32.

    kl                  nats a judged token, mean over documents, with a bootstrap interval, and p99
    by_age              the same mean by tokens in front: below 512, 1,024, 2,048, and more
    same                share of judged tokens whose likeliest is the full cache's
    right               of the judged tokens that the full cache predicts, the share that stays
                        predicted: exact recall, in copies and lookups
    entries_per_token   entries a head and token at the end of each document, window included

Beside each plan `window` keeps as many entries as a window alone, in all heads, and `evicted` as
many by the attention they got (`memory_yardsticks.py`).  `int8` and `int4` are full caches with a
scale for each head and token (int4: each 32 values), at 0.51 and 0.28 of bf16's bytes; `int8`
stands beside each plan too, on top of it.  `bf16` is the noise floor, and `q8_0` and `q4_k_m` are
the full cache with the model's weights in those types of llama.cpp.

    python benchmarks/memory.py --documents documents.jsonl [--plan my-smashed] [--alone]

With `--alone` plans are measured and nothing beside them, in a sixth of the time.
"""

import argparse
import copy
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.checkpoint import base_of, open_decoder
from lightstride.errors import DataError, ModelError
from lightstride.generate.chat_template import chat_tokens, token_ids
from lightstride.memory.attention import heads_of
from lightstride.memory.cache import full_plan
from lightstride.memory.fitness import Fidelity, Judge, Text
from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import SINKS, Keep, MemoryPlan
from lightstride.memory.plan_files import MemoryFile, check_belongs, read_plans
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_tokenizer, locate
from memory_yardsticks import evicted_hidden, in_bits, packed_weights, stored_hidden
from output import add_output, finish, run_or_say

AGES = (512, 1024, 2048)
DRAWS = 1000
BUILT_IN = "smollm2-135m-smash"
Numbers = dict[str, dict[str, object]]
"""Numbers by domain."""


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: str


class Document(msgspec.Struct):
    """A conversation whose last message, the assistant's, is judged."""

    domain: str
    messages: list[Message]


def read_documents(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    """The documents of a file of JSON lines; DataError for a line that is none."""
    texts = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            document = msgspec.json.decode(line, type=Document)
        except msgspec.DecodeError as error:
            raise DataError(f"line {number} of {path}: {error}") from error
        if len(document.messages) < 2 or document.messages[-1].role != "assistant":
            raise DataError(f"line {number} of {path} does not end with the assistant's message")
        before = chat_tokens(
            tokenizer, [{"role": m.role, "content": m.content} for m in document.messages[:-1]]
        )
        judged = token_ids(tokenizer, document.messages[-1].content, special=False)
        texts.append(Text(document.domain, (*before, *judged), len(before)))
    if not texts:
        raise DataError(f"{path} has no documents")
    return texts


def window_plan(full: MemoryPlan, entries: int, length: int) -> MemoryPlan:
    """All heads keep the first tokens and a window, in all at most so many entries."""
    window = next(
        w
        for w in range(entries // full.num_heads + 1, 0, -1)
        if Keep(0, w).entries(length, SINKS) * full.num_heads <= entries
    )
    blocks = tuple((Keep(0, window),) * len(block) for block in full.blocks)
    return MemoryPlan(blocks=blocks, head_dim=full.head_dim, sinks=SINKS)


def interval(values: Sequence[float]) -> list[float]:
    """Where the mean lies in 95% of draws of as many documents."""
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(DRAWS))
    return [means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS) - 1]]


def by_age(texts: Sequence[Text], found: Sequence[Fidelity]) -> dict[str, float]:
    """Mean divergence of judged tokens by how many tokens stand in front of them."""
    ages = torch.cat([torch.arange(t.start, len(t.tokens)) for t in texts])
    kl = torch.cat([each.kl_N for each in found])
    bounds = [0, *AGES, sys.maxsize]
    means = {}
    for low, high in itertools.pairwise(bounds):
        here = (ages >= low) & (ages < high)
        if bool(here.any()):
            means[f"from {low}"] = float(kl[here].mean())
    return means


def summary(
    texts: Sequence[Text], found: Sequence[Fidelity], shares: Sequence[float]
) -> dict[str, dict[str, object]]:
    """The numbers of each domain."""
    numbers: dict[str, dict[str, object]] = {}
    for domain in dict.fromkeys(text.domain for text in texts):
        own = [i for i, text in enumerate(texts) if text.domain == domain]
        means = [float(found[i].kl_N.mean()) for i in own]
        tokens = torch.cat([found[i].kl_N for i in own])
        full = torch.cat([found[i].right_full_N for i in own])
        right = torch.cat([found[i].right_N for i in own])
        numbers[domain] = {
            "kl": sum(means) / len(means),
            "kl_interval": interval(means),
            "kl_p99": float(tokens.quantile(0.99)),
            "by_age": by_age([texts[i] for i in own], [found[i] for i in own]),
            "same": float(torch.cat([found[i].same_N for i in own]).float().mean()),
            "right": float(right[full].float().mean()) if bool(full.any()) else None,
            "entries_per_token": sum(shares[i] for i in own) / len(own),
            "documents": len(own),
        }
    return numbers


def measure(
    model: PreTrainedModel, texts: Sequence[Text], file: MemoryFile, *, alone: bool = False
) -> dict[str, dict[str, Numbers]]:
    """Numbers by budget, way and domain; of plans alone, if so asked."""
    full = full_plan(model)
    judge = Judge(model, texts, full, file.scores)
    if alone:
        return {
            f"{budget:g}": {"plan": with_plan_alone(judge, p)} for budget, p in file.plans.items()
        }
    numbers = {"1": full_caches(judge, full)}
    for budget, plan in file.plans.items():
        numbers[f"{budget:g}"] = with_plan(judge, full, plan)
        sys.stderr.write(f"plan for {budget:g}\n")
    for name in ("bf16", "q8_0", "q4_k_m"):
        numbers["1"][name] = with_weights(judge, full, name)
        sys.stderr.write(f"weights in {name}\n")
    return numbers


def full_caches(judge: Judge, full: MemoryPlan) -> dict[str, Numbers]:
    """Caches of all tokens in few bits."""
    numbers = {}
    for name, store in (("int8", in_bits(8, None)), ("int4", in_bits(4, 32))):
        found = [
            judge.compare(stored_hidden(judge.model, text, full, store), index)
            for index, text in enumerate(judge.texts)
        ]
        numbers[name] = summary(judge.texts, found, [1.0] * len(found))
        sys.stderr.write(f"full cache in {name}\n")
    return numbers


def with_plan_alone(judge: Judge, plan: MemoryPlan) -> Numbers:
    """A plan, and nothing beside it."""
    shares = [plan.share(len(text.tokens)) for text in judge.texts]
    found = [judge.fidelity(plan, index) for index in range(len(judge.texts))]
    return summary(judge.texts, found, shares)


def with_plan(judge: Judge, full: MemoryPlan, plan: MemoryPlan) -> dict[str, Numbers]:
    """A plan, and what else keeps as many entries."""
    texts, model = judge.texts, judge.model
    lengths = [len(text.tokens) for text in texts]
    shares = [plan.share(length) for length in lengths]
    counts = [plan.entries(length) for length in lengths]
    windows = [window_plan(full, *pair) for pair in zip(counts, lengths, strict=True)]
    exact = in_bits(8, None)
    ways: dict[str, list[Fidelity]] = {
        "plan": [judge.fidelity(plan, index) for index in range(len(texts))],
        "window": [judge.fidelity(each, index) for index, each in enumerate(windows)],
        "evicted": [
            judge.compare(evicted_hidden(model, text, count // full.num_heads), index)
            for index, (text, count) in enumerate(zip(texts, counts, strict=True))
        ],
        "plan int8": [
            judge.compare(stored_hidden(model, text, plan, exact, judge.scores), index)
            for index, text in enumerate(texts)
        ],
    }
    return {name: summary(texts, found, shares) for name, found in ways.items()}


def with_weights(judge: Judge, full: MemoryPlan, dtype: str) -> Numbers:
    """The full cache of the model computed in bf16, or with weights in a type of llama.cpp."""
    other = copy.deepcopy(judge.model)
    if dtype == "bf16":
        other = other.to(torch.bfloat16)
    else:
        other.load_state_dict(packed_weights(other, dtype), strict=False)
    found = []
    for index, text in enumerate(judge.texts):
        tokens_T = torch.tensor(text.tokens, device=other.device)
        hidden_ND = masked_hidden(other, tokens_T, full)[text.start - 1 : -1]
        found.append(judge.compare(hidden_ND, index, other))
    return summary(judge.texts, found, [1.0] * len(found))


def run(flags: argparse.Namespace) -> None:
    """Measure, print, and write."""
    source = flags.plan
    file = read_plans(Path(locate(source)))
    if file is None:
        raise ModelError(f"{source} has no memory plan")
    tokenizer = load_tokenizer(source)
    model = base_of(open_decoder(source, dtype=torch.float32, kv=1.0))
    for plan in file.plans.values():
        check_belongs(plan, heads_of(model), fingerprint(model), source)
    texts = read_documents(flags.documents, tokenizer)
    numbers = measure(model, texts, file, alone=flags.alone)
    result: dict[str, object] = {
        budget: ways["plan"] for budget, ways in numbers.items() if "plan" in ways
    }
    finish("memory", {**result, "others": numbers}, flags, seed=0)


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=Path, required=True, help="JSON lines, one a document")
    parser.add_argument("--plan", default=BUILT_IN, help="a model with memory plans")
    parser.add_argument("--alone", action="store_true", help="plans, and nothing beside them")
    add_output(parser)
    run_or_say(run, parser.parse_args())


if __name__ == "__main__":
    main()
