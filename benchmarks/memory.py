"""What memory plans cost on documents: divergence from the full cache, teacher-forced, in fp32.

    kl                  nats a judged token, mean over documents, with a bootstrap interval, and p99
    by_age              the same mean by tokens in front: below 512, 1,024, 2,048, and more
    same                share of judged tokens whose likeliest is the full cache's
    right               of the judged tokens that the full cache predicts, the share that stays
                        predicted: exact recall, in copies and lookups
    entries_per_token   entries a head and token at the end of each document, window included

Beside each plan `window` keeps as many entries as a window alone, in all heads.  `int8` and `int4`
are full caches with a scale for each head and token (int4: each 32 values), at 0.5 and 0.28 of
bf16's bytes; `int8` stands beside each plan too, on top of it.  `bf16` is the noise floor.

    python benchmarks/memory.py --documents documents.jsonl [--plan my-smashed]
"""

import argparse
import itertools
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.errors import DataError, LightstrideError, ModelError
from lightstride.generate.chat_template import chat_tokens, token_ids
from lightstride.memory.attention import heads_of, read_by, sliding_of
from lightstride.memory.cache import full_plan
from lightstride.memory.fitness import Fidelity, Judge, Text
from lightstride.memory.masked import MaskedReader
from lightstride.memory.plan import SINKS, Keep, MemoryPlan
from lightstride.memory.plan_files import check_belongs, read_plans
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer, locate
from lightstride.smash.model.graft_files import read_config
from output import add_output, finish

AGES = (512, 1024, 2048)
DRAWS = 1000
BUILT_IN = "smollm2-135m-smash"
Store = Callable[[Tensor], Tensor]
"""What a cache makes of keys or values that it stores, (B, G, T, d)."""


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


class StoringReader(MaskedReader):
    """The masked twin of a cache that stores something near what it is given."""

    def __init__(
        self, plan: MemoryPlan, positions_BT: Tensor, sliding: list[int | None], store: Store
    ) -> None:
        super().__init__(plan, positions_BT, sliding)
        self.store = store

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        stored = self.store(key_BGTd), self.store(value_BGTd)
        return super().read(layer, query_BHTd, *stored, scale)


def in_bits(bits: int, group: int | None) -> Store:
    """Keys or values rounded to so many bits, with a scale for each token and group of values."""
    largest = 2 ** (bits - 1) - 1

    def store(states: Tensor) -> Tensor:
        size = states.shape[-1]
        parts = states.unflatten(-1, (-1, size if group is None else math.gcd(group, size)))
        scale = (parts.abs().amax(-1, keepdim=True) / largest).clamp_min(1e-8)
        return ((parts / scale).round() * scale).reshape(states.shape)

    return store


@torch.inference_mode()
def stored_hidden(model: PreTrainedModel, text: Text, plan: MemoryPlan, store: Store) -> Tensor:
    """Hidden states that predict the judged tokens, read from what a cache stores, (N, D)."""
    tokens_1T = torch.tensor([text.tokens], device=model.device)
    positions_1T = torch.arange(len(text.tokens), device=model.device)[None]
    reader = StoringReader(plan, positions_1T, sliding_of(model), store)
    with read_by(model, reader):
        output = model.get_decoder()(
            input_ids=tokens_1T, position_ids=positions_1T, use_cache=False
        )
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD[text.start - 1 : -1]


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
    model: PreTrainedModel, texts: Sequence[Text], plans: Mapping[float, MemoryPlan]
) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    """Numbers by budget, way and domain."""
    full = full_plan(model)
    judge = Judge(model, texts, full)
    lengths = [len(text.tokens) for text in texts]
    exact = in_bits(8, None)
    numbers: dict[str, dict[str, dict[str, dict[str, object]]]] = {"1": {}}
    for name, store in (("int8", exact), ("int4", in_bits(4, 32))):
        found = [
            judge.compare(stored_hidden(model, text, full, store), i)
            for i, text in enumerate(texts)
        ]
        numbers["1"][name] = summary(texts, found, [1.0] * len(texts))
        sys.stderr.write(f"full cache in {name}\n")
    for budget, plan in plans.items():
        ways = numbers[f"{budget:g}"] = {}
        shares = [plan.share(length) for length in lengths]
        found = [judge.fidelity(plan, i) for i in range(len(texts))]
        ways["plan"] = summary(texts, found, shares)
        windows = [window_plan(full, plan.entries(length), length) for length in lengths]
        found = [judge.fidelity(each, i) for i, each in enumerate(windows)]
        ways["window"] = summary(texts, found, shares)
        found = [
            judge.compare(stored_hidden(model, text, plan, exact), i)
            for i, text in enumerate(texts)
        ]
        ways["plan int8"] = summary(texts, found, shares)
        sys.stderr.write(f"plan for {budget:g}\n")
    low = model.to(torch.bfloat16)
    floor = Judge(low, texts, full)
    found = [floor_of(judge, floor, model, index) for index in range(len(texts))]
    numbers["1"]["bf16"] = summary(texts, found, [1.0] * len(texts))
    return numbers


def floor_of(exact: Judge, low: Judge, model: PreTrainedModel, index: int) -> Fidelity:
    """The bf16 model's hidden states judged by the head in bf16, against those of fp32."""
    exact.model = model
    exact.reference[index] = exact.reference[index].to(torch.bfloat16)
    return exact.compare(low.reference[index], index)


def run(flags: argparse.Namespace) -> None:
    """Measure, print, and write."""
    source = flags.plan
    file = read_plans(Path(locate(source)))
    if file is None:
        raise ModelError(f"{source} has no memory plan")
    tokenizer = load_tokenizer(source)
    base = read_config(source).base if (Path(locate(source)) / "config.json").is_file() else source
    model = load_model(base, dtype=torch.float32)
    for plan in file.plans.values():
        check_belongs(plan, heads_of(model), fingerprint(model), source)
    texts = read_documents(flags.documents, tokenizer)
    numbers = measure(model, texts, file.plans)
    result: dict[str, object] = {
        budget: ways["plan"] for budget, ways in numbers.items() if "plan" in ways
    }
    finish("memory", {**result, "others": numbers}, flags, seed=0)


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=Path, required=True, help="JSON lines, one a document")
    parser.add_argument("--plan", default=BUILT_IN, help="a smashed model with memory plans")
    add_output(parser)
    torch.set_num_threads(2)
    try:
        run(parser.parse_args())
    except LightstrideError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
