"""What the server costs: next to `generate` in one process, and next to `transformers serve`.

Servers are processes of their own, started for this and idle while something else is timed; all
ways take turns, and every figure is the median of the rounds.

    throughput        tokens/s of 16 streams at once, of `generate` with a batch of 16, and of
                      transformers' server with continuous batching (bf16 as here, dense model)
    one stream        tokens/s of one stream, and of `generate` with one prompt
    overhead          processor time of the event loop's thread, one stream, a token
    first token       of a short request, on an idle server and while a long prompt is read
    ready             from the start of the process to the line that says so
    opening           first token after an opening of `--long` tokens, new and read before

All but the last are of a server that keeps no prefixes: the same questions come in every round.

    python benchmarks/serve.py --output results/serve.json
"""

import argparse
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import torch

from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.config.decoding import Settings
from lightstride.generate import Decoder, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.opening.load import load_model, load_tokenizer
from output import add_output, finish
from streams import Client

QUESTIONS = (
    "What is a lighthouse for?",
    "Write a short story about a fox and a river.",
    "Explain why the sky is blue.",
    "How do I make a cup of tea?",
    "Write a Python function that reverses a string.",
    "What is 17 times 23?",
    "Name five animals that live in the sea.",
    "Give me advice for a job interview.",
)
LATER = 0.3
"""Seconds after a long prompt at which a short request comes."""
Numbers = dict[str, object]


class Remote:
    """A server in a process of its own, and the client that asks it, in another."""

    def __init__(
        self, client: Client, url: str, model: str, ready_seconds: float, extra: Numbers, pid: int
    ) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.client = client
        self.host = host
        self.port = int(port)
        self.model = model
        self.ready_seconds = ready_seconds
        self.extra = extra
        self.loop_thread = Path(f"/proc/{pid}/task/{pid}/schedstat")

    def loop_seconds(self) -> float:
        """Processor time that the process's first thread has had."""
        return int(self.loop_thread.read_text().split()[0]) / 1e9

    def body(self, question: str, new_tokens: int) -> Numbers:
        """A request."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            **self.extra,
        }

    def at_once(self, questions: Sequence[str], new_tokens: int) -> tuple[float, int]:
        """Seconds to the end of the last of several answers, and tokens of all."""
        bodies = [self.body(question, new_tokens) for question in questions]
        told = self.client.ask(self.host, self.port, bodies)
        return max(each.end for each in told), sum(each.tokens for each in told)

    def first_token(self, long_prompt: str | None) -> float:
        """Seconds to the first token of a short request, a long prompt being read or not."""
        short = self.body("Say hello.", 4)
        if long_prompt is None:
            return self.client.ask(self.host, self.port, [short])[0].first
        bodies = [self.body(long_prompt, 4), short]
        long, told = self.client.ask(self.host, self.port, bodies, LATER)
        assert long.first > LATER + told.first, "the long prompt was read before the short one"
        return told.first


@contextlib.contextmanager
def lightstride_server(
    client: Client, model: str, mode: str | None, threads: int, *flags: str
) -> Iterator[Remote]:
    """Our server, ready."""
    command = [sys.executable, "-m", "lightstride", "serve", model, "--port", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            url = ""
            for line in process.stderr:
                if found := re.search(r"serving .* on (http://\S+)", line):
                    url = found[1]
                    break
            assert url, "the server did not start"
            seconds = time.perf_counter() - begin
            extra: Numbers = {"ignore_eos": True, "stream_options": {"include_usage": True}}
            if mode is not None:
                extra["mode"] = mode
            yield Remote(client, url, model, seconds, extra, process.pid)
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def transformers_server(client: Client, dense: str, threads: int, folder: Path) -> Iterator[Remote]:
    """transformers' own server over the dense model, with its continuous batching."""
    model = load_model(dense, dtype=pick_dtype("auto", suitable_dtype("cpu")))
    model.generation_config.eos_token_id = None
    save_checkpoint(model, load_tokenizer(dense), folder / "dense")
    del model
    port = free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder / "dense"), "--continuous-batching"]
    command += ["--device", "cpu", "--port", str(port), "--cb-num-blocks", "512"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    log = (folder / "log").open("w")
    begin = time.perf_counter()
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.perf_counter() - begin < 120
                time.sleep(0.2)
            seconds = time.perf_counter() - begin
            yield Remote(client, url, str(folder / "dense"), seconds, {}, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def in_process(decoder: Decoder, questions: Sequence[str], settings: Settings) -> tuple[float, int]:
    """Seconds and tokens of `generate` with all questions as one batch."""
    prompts = [
        chat_tokens(decoder.tokenizer, [{"role": "user", "content": question}])
        for question in questions
    ]
    begin = time.perf_counter()
    answers = generate(decoder, prompts, settings)
    return time.perf_counter() - begin, sum(len(answer.tokens) for answer in answers)


def measure(args: argparse.Namespace, ours: Remote, theirs: Remote | None) -> Numbers:
    """All figures, the ways taking turns."""
    dtype = pick_dtype("auto", suitable_dtype(pick_device("auto")))
    decoder = open_decoder(args.model, dtype=dtype, device=pick_device("auto"))
    settings = Settings(max_new_tokens=args.new_tokens, mode=args.mode, ignore_end_tokens=True)
    many = (QUESTIONS * args.streams)[: args.streams]
    long_prompt = "the old lighthouse " * (args.long // 3)
    rates: dict[str, list[float]] = {name: [] for name in ("served", "batch", "one", "single")}
    rates["transformers"] = []
    overhead, idle, busy = [], [], []
    for server in (ours, theirs):
        if server is not None:
            server.at_once(QUESTIONS[:2], 8)
    in_process(decoder, QUESTIONS[:2], settings)
    for turn in range(args.rounds):
        question = [QUESTIONS[turn % len(QUESTIONS)]]
        for name, (seconds, tokens) in {
            "served": ours.at_once(many, args.new_tokens),
            "batch": in_process(decoder, many, settings),
        }.items():
            rates[name].append(tokens / seconds)
        if theirs is not None:
            seconds, tokens = theirs.at_once(many, args.new_tokens)
            rates["transformers"].append(tokens / seconds)
        before = ours.loop_seconds()
        served, tokens = ours.at_once(question, args.new_tokens)
        overhead.append((ours.loop_seconds() - before) / tokens)
        alone, same = in_process(decoder, question, settings)
        assert tokens == same
        rates["one"].append(tokens / served)
        rates["single"].append(tokens / alone)
        idle.append(ours.first_token(None))
        busy.append(ours.first_token(long_prompt))
    return summary(rates, overhead, idle, busy, ours.ready_seconds)


def opening_twice(args: argparse.Namespace, ours: Remote) -> Numbers:
    """Time to the first token after a long opening, read and kept, of a server that keeps them."""
    ours.at_once(QUESTIONS[:2], 8)
    opening = "the old lighthouse " * (args.long // 3)
    times = []
    for question in QUESTIONS[:2]:
        body = ours.body(opening + question, 4)
        times.append(1000 * ours.client.ask(ours.host, ours.port, [body])[0].first)
    return {"first_token_opening_ms": times[0], "first_token_opening_again_ms": times[1]}


def summary(
    rates: dict[str, list[float]],
    overhead: Sequence[float],
    idle: Sequence[float],
    busy: Sequence[float],
    ready: float,
) -> Numbers:
    """Medians, and medians of the ratios within a round."""

    def ratio(above: str, below: str) -> float | None:
        pairs = list(zip(rates[above], rates[below], strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    return {
        "tokens_per_second": {
            name: statistics.median(values) for name, values in rates.items() if values
        },
        "served_over_generate": ratio("served", "batch"),
        "served_over_transformers": ratio("served", "transformers"),
        "one_stream_over_generate": ratio("one", "single"),
        "overhead_ms_per_token": 1000 * statistics.median(overhead),
        "first_token_idle_ms": 1000 * statistics.median(idle),
        "first_token_busy_ms": 1000 * statistics.median(busy),
        "first_token_busy_over_idle": statistics.median(
            b / a for a, b in zip(idle, busy, strict=True)
        ),
        "ready_seconds": ready,
    }


def main() -> None:
    """Measure, print one JSON document, write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-smash")
    parser.add_argument("--mode", help="of both; by default the model's own")
    parser.add_argument(
        "--dense", default="smollm2-135m", help="for transformers; '' leaves it out"
    )
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--long", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(Client())
        theirs = None
        if args.dense:
            theirs = stack.enter_context(
                transformers_server(client, args.dense, args.threads, folder)
            )
        how = (client, args.model, args.mode, args.threads)
        with lightstride_server(*how, "--no-prefix-cache") as ours:
            numbers = measure(args, ours, theirs)
        with lightstride_server(*how) as ours:
            numbers |= opening_twice(args, ours)
    finish("serve", numbers, args, 0)


if __name__ == "__main__":
    main()
