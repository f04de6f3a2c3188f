"""A draft head in engines: the base's own answers, as many drafts right as in our chains, faster.

For each engine, on prompts that the head was not trained on, greedily and one at a time:

    same                    answers that are, token for token, those without drafts
    near_ties               those that part where the base leads by less than 0.05 in logits
    parted                  the others
    accepted_over_drafted   of the engine, and `ours` on the very same answers: chains as long
    tokens_per_step         1 + drafts accepted over forwards (vLLM: mean_acceptance_length)
    gain                    tokens a second over those without drafts, in turn; `ngram` is the
                            engine's own lookup of what was there before

Answers and counts are taken in fp32, speed in bf16.  `contexts` are our own chains behind short
and long conversations.

    python benchmarks/engines_smash.py drafted --prompts mt_bench.jsonl.gz gsm8k_test.jsonl.gz \
        --per-domain 10 --vllm vllm-env/bin/python --output results/engines-smash.json

`drafted` is a folder that `lightstride smash --drafter eagle3` made.  On a busy machine, `--clock
processor --threads 1` counts the process's own seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

import torch
import xllamacpp
from transformers import PreTrainedModel

from draft_chains import (
    Counts,
    Tokens,
    at_contexts,
    conversation,
    count_chains,
    lead_where_parted,
)
from engines import CLOCKS
from lightstride.checkpoint import open_decoder
from lightstride.data.prompts import read_prompts
from lightstride.errors import ConfigError, LightstrideError
from lightstride.export.gguf.head import refuse_base_for_head, write_head_gguf
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import local_folder, locate
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.model.eagle3_files import flat_config, stored_tensors, write_head
from lightstride.smash.model.headed import read_headed
from lightstride.smash.model.reading import BaseReader
from output import add_output, finish, path_or_name
from speed import QUESTIONS, domains_of
from vllm_check import ENVIRONMENT

TIE = 0.05
"""A lead in logits below which rounding decides: engines compute in another order."""
PLAIN, HEAD, NGRAM = KINDS = ("plain", "head", "ngram")
NGRAM_WORDS = {"prompt_lookup_max": 4, "prompt_lookup_min": 1}

Document = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """Answers of an engine, what it counted, and the time it took."""

    answers: list[Tokens]
    counts: Counts
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(map(len, self.answers)) / self.seconds


@dataclass(frozen=True)
class Bench:
    """What is measured, with what we say ourselves."""

    decoder: HeadedDecoder
    prompts: Sequence[Tokens]
    flags: argparse.Namespace

    @property
    def model(self) -> PreTrainedModel:
        return self.decoder.model

    def beside_ours(self, drafted: Answered) -> Document:
        """Our chains on an engine's answers with the head, and its shares over ours."""
        head, flags = self.decoder.head, self.flags
        reader = BaseReader(self.model, head.config.taps)
        ours = count_chains(head, reader, self.prompts, drafted.answers, flags.chain).as_dict()
        its = drafted.counts.as_dict()
        return {
            "ours": ours,
            "over_ours": {
                key: round(its[key] / ours[key], 4)
                for key in ("accepted_over_drafted", "tokens_per_step")
                if ours[key]
            },
        }


def compared(bench: Bench, found: Mapping[str, Answered]) -> Document:
    """Both ways to draft beside none, the head's beside our own chains too."""
    each = {kind: compare(bench, found[PLAIN], found[kind]) for kind in (HEAD, NGRAM)}
    each[HEAD] |= bench.beside_ours(found[HEAD])
    return each


def compare(bench: Bench, plain: Answered, drafted: Answered) -> Document:
    """How answers with drafts differ from those without, and how many drafts were right."""
    leads = [
        lead
        for prompt, one, other in zip(bench.prompts, plain.answers, drafted.answers, strict=True)
        if (lead := lead_where_parted(bench.model, prompt, one, other)) is not None
    ]
    return {
        "prompts": len(bench.prompts),
        "tokens": sum(map(len, drafted.answers)),
        "same": len(bench.prompts) - len(leads),
        "near_ties": sum(lead < TIE for lead in leads),
        "parted": sum(lead >= TIE for lead in leads),
        "largest_lead": round(max(leads, default=0.0), 4),
        **drafted.counts.as_dict(),
    }


def write_ggufs(bench: Bench, folder: Path, dtype: str) -> tuple[Path, Path]:
    """Base and head in this precision."""
    model, head, tokenizer = bench.model, bench.decoder.head, bench.decoder.tokenizer
    geometry = adapter_for(model.config).geometry(model.config)
    files = folder / f"base-{dtype}.gguf", folder / f"head-{dtype}.gguf"
    weights = ModelWeights(model)
    write_gguf(weights, model.config, geometry, tokenizer, files[0], dtype=dtype, name="base")
    tensors = {**stored_tensors(head, "flat"), "d2t": head.tokens_of_rows()}
    settings, taps = flat_config(head.config), head.config.taps
    write_head_gguf(
        settings, tensors, taps, model.config, tokenizer, files[1], dtype=dtype, name="head"
    )
    return files


def llama_cpp(
    base: Path, head: Path, kind: str, flags: argparse.Namespace, *, exact: bool
) -> xllamacpp.Server:
    """A server of one kind; an exact one keeps keys and values in fp32."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(base)
    settings.n_ctx = settings.n_batch = settings.n_ubatch = flags.prompt_tokens + flags.new_tokens
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = flags.threads
    settings.warmup = settings.fit_params = False
    settings.verbosity = -1
    if exact:
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    types, draft = xllamacpp.common_speculative_type, settings.speculative.draft
    if kind == HEAD:
        settings.speculative.types = [types.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3]
        draft.mparams.path = str(head)
        draft.n_max, draft.n_min, draft.p_min = flags.chain, 0, 0.0
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = flags.threads
    if kind == NGRAM:
        settings.speculative.types = [types.COMMON_SPECULATIVE_TYPE_NGRAM_MOD]
    return xllamacpp.Server(settings)


def ask_llama_cpp(server: xllamacpp.Server, bench: Bench) -> Answered:
    """All prompts, one after the other."""
    clock, answers, counts = CLOCKS[bench.flags.clock], [], Counts()
    start = clock()
    for prompt in bench.prompts:
        body = {
            "prompt": prompt,
            "n_predict": bench.flags.new_tokens,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        found = ask(server.listening_address + "/completion", body)
        answers.append(tuple(found["tokens"]))
        drafted = found["timings"].get("draft_n", 0)
        accepted = found["timings"].get("draft_n_accepted", 0)
        forwards = max(0, len(found["tokens"]) - 1 - accepted)
        counts += Counts(forwards, drafted, accepted)
    return Answered(answers, counts, clock() - start)


def ask(address: str, body: Document) -> Document:
    """A server's answer to one request."""
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        answer: Document = json.load(response)
    return answer


def measure_llama_cpp(bench: Bench) -> Document:
    """Answers and counts in fp32, then speed in bf16."""
    flags, config = bench.flags, bench.model.config
    refuse_base_for_head(config, adapter_for(config).geometry(config))
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        files = write_ggufs(bench, Path(name), "f32")
        found = {
            kind: ask_llama_cpp(llama_cpp(*files, kind, flags, exact=True), bench) for kind in KINDS
        }
        timed = KINDS if flags.rounds else ()
        files = write_ggufs(bench, Path(name), "bf16") if timed else files
        servers = {kind: llama_cpp(*files, kind, flags, exact=False) for kind in timed}
        few = Bench(bench.decoder, bench.prompts[:1], flags)
        for server in servers.values():
            ask_llama_cpp(server, few)
        for turn in range(flags.rounds):
            order = [*KINDS[turn % 3 :], *KINDS[: turn % 3]]
            for kind in order:
                rates[kind].append(ask_llama_cpp(servers[kind], bench).rate)
    return compared(bench, found) | speeds(rates)


def speeds(rates: Mapping[str, Sequence[float]]) -> Document:
    """Tokens a second, and gains over no drafts: medians over rounds; nothing where none was."""
    if not rates[PLAIN]:
        return {}
    gains = {
        kind: median(a / b for a, b in zip(rates[kind], rates[PLAIN], strict=True))
        for kind in (HEAD, NGRAM)
    }
    return {
        "tokens_per_second": {kind: round(median(each), 2) for kind, each in rates.items()},
        "gain": {kind: round(gain, 4) for kind, gain in gains.items()},
        "head_over_ngram": round(gains[HEAD] / gains[NGRAM], 4),
    }


def ask_vllm(bench: Bench, base: str, head: Path, kind: str, dtype: str) -> tuple[Answered, str]:
    """All prompts in a process of vLLM's own; and its version."""
    flags = bench.flags
    chain = {"num_speculative_tokens": flags.chain}
    speculative = {
        PLAIN: None,
        HEAD: {"method": "eagle3", "model": str(head), **chain},
        NGRAM: {"method": "ngram", **NGRAM_WORDS, **chain},
    }
    job = {
        "model": base,
        "prompts": bench.prompts,
        "new_tokens": flags.new_tokens,
        "dtype": dtype,
        "speculative": speculative[kind],
    }
    threads = {"OMP_NUM_THREADS": str(flags.threads)}
    done = subprocess.run(
        [flags.vllm, str(Path(__file__).with_name("vllm_drafts.py"))],
        env={**os.environ, **ENVIRONMENT, **threads},
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"vLLM ({kind}, {dtype}) ended with code {done.returncode}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    counts = Counts(told["forwards"], told["drafted"], told["accepted"])
    seconds = told["processor_seconds" if flags.clock == "processor" else "seconds"]
    return Answered([tuple(each) for each in told["answers"]], counts, seconds), told["vllm"]


def measure_vllm(bench: Bench) -> Document:
    """Answers and counts in fp32, then speed in bf16."""
    flags, config = bench.flags, bench.model.config
    name = read_headed(local_folder(str(flags.model))).base
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        head = Path(folder) / "head"
        write_head(
            bench.decoder.head,
            head,
            layout="speculators",
            base=locate(name),
            architectures=list(config.architectures or []),
            num_blocks=adapter_for(config).geometry(config).num_blocks,
        )

        def run(kind: str, dtype: str) -> tuple[Answered, str]:
            return ask_vllm(bench, locate(name), head, kind, dtype)

        found = {kind: run(kind, "float32") for kind in KINDS}
        for _ in range(flags.rounds):
            for kind in KINDS:
                rates[kind].append(run(kind, "bfloat16")[0].rate)
    answered = {kind: each for kind, (each, _) in found.items()}
    return {"vllm": found[PLAIN][1], **compared(bench, answered), **speeds(rates)}


def measure_contexts(flags: argparse.Namespace) -> Document:
    """Our chains on the same questions behind short and long conversations, by window."""
    decoder = open_headed(flags, torch.bfloat16)
    plain = PlainDecoder(decoder.model, decoder.tokenizer)
    questions = [prompt.messages[-1].content for prompt in read_prompts(str(flags.questions))]
    openings = [conversation(plain, [("", "")], question, 0) for question in questions]
    answers = generate(plain, openings, Settings(max_new_tokens=flags.turn_tokens))
    turns = [(question, each.text) for question, each in zip(questions, answers, strict=True)]
    found: Document = {}
    for window in (None, *flags.windows):
        if window is not None:
            decoder.head.set_window(window)
        found["all" if window is None else str(window)] = at_contexts(
            plain,
            decoder.head,
            turns,
            flags.contexts,
            asked=flags.asked,
            most=flags.chain,
            new_tokens=flags.new_tokens,
        )
    return found


def open_headed(flags: argparse.Namespace, dtype: torch.dtype) -> HeadedDecoder:
    """The model with its head."""
    decoder = open_decoder(str(flags.model), dtype=dtype)
    if not isinstance(decoder, HeadedDecoder):
        raise ConfigError(f"{flags.model} has no draft head; smash --drafter eagle3 makes one")
    return decoder


def chosen_prompts(decoder: HeadedDecoder, flags: argparse.Namespace) -> list[Tokens]:
    """The first prompts of each domain that are no longer than allowed."""
    every = argparse.Namespace(**{**vars(flags), "per_domain": None})
    short = [
        [prompt for prompt in mine if len(prompt) <= flags.prompt_tokens][: flags.per_domain]
        for mine in domains_of(decoder, every).values()
    ]
    return [prompt for mine in short for prompt in mine]


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=path_or_name, help="a model with a draft head")
    parser.add_argument("--prompts", nargs="+", type=path_or_name, metavar="FILE")
    parser.add_argument("--domains", nargs="+", help="these domains of them alone")
    parser.add_argument("--per-domain", type=int, help="prompts of each domain (default: all)")
    parser.add_argument("--prompt-tokens", type=int, default=400, help="longest prompt")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--chain", type=int, default=3, metavar="N", help="tokens of a chain")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0 is none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--engines", nargs="*", default=["llama.cpp"], choices=["llama.cpp"])
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of vLLM's environment")
    parser.add_argument("--contexts", nargs="*", type=int, default=[500, 4000])
    parser.add_argument("--windows", nargs="*", type=int, default=[], metavar="N")
    parser.add_argument("--questions", type=path_or_name, default=QUESTIONS)
    parser.add_argument("--asked", type=int, default=10, help="questions asked at each context")
    parser.add_argument("--turn-tokens", type=int, default=256)
    add_output(parser)
    return parser.parse_args()


def main() -> int:
    """Measure what was asked for; the exit code."""
    flags = parse()
    torch.set_num_threads(flags.threads)
    numbers: Document = {"chain": flags.chain, "threads": flags.threads, "clock": flags.clock}
    try:
        decoder = open_headed(flags, torch.float32)
        bench = Bench(decoder, chosen_prompts(decoder, flags), flags)
        if flags.engines:
            numbers["llama_cpp"] = measure_llama_cpp(bench)
        if flags.vllm:
            numbers["vllm"] = measure_vllm(bench)
        if flags.contexts:
            numbers["contexts"] = measure_contexts(flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finish("engines-smash", numbers, flags, 0)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # llama.cpp's servers may hang when they are shut down in order
