"""llama.cpp for tests: load a GGUF, ask for tokens and log-probabilities.

One child process serves all tests of a run.  A crash of the engine is then a failed test and not
the end of the run, and its servers are never shut down in order, at which some of them hang.
"""

import atexit
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class Engine:
    """One GGUF, loaded on the CPU, with keys and values kept in fp32; `head` drafts for it."""

    process: subprocess.Popen[str] | None = None

    def __init__(self, path: Path, *, head: Path | None = None) -> None:
        self.paths = [str(path)] if head is None else [str(path), str(head)]
        self.path = str(path)

    def log_probabilities(self, prompt: Sequence[int], vocab_size: int) -> list[float]:
        """Of each token after a prompt."""
        body = {
            "prompt": list(prompt),
            "n_predict": 1,
            "temperature": 0,
            "n_probs": vocab_size,
            "cache_prompt": False,
        }
        answer = self.ask("/v1/completions", body)
        (step,) = answer["choices"][0]["logprobs"]["content"]
        found = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        return [found[token] for token in range(vocab_size)]

    def complete(self, prompt: Sequence[int], length: int) -> Answer:
        """A greedy answer of so many tokens: `tokens`, and counts of drafts in `timings`."""
        body = {
            "prompt": list(prompt),
            "n_predict": length,
            "temperature": 0,
            "return_tokens": True,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        return self.ask("/completion", body)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The engine's own tokens of a text."""
        tokens: list[int] = self.ask("/tokenize", {"content": text, "add_special": add_special})[
            "tokens"
        ]
        return tokens

    def ask(self, route: str, body: Answer) -> Answer:
        """One request to the child, which is started by the first."""
        if Engine.process is None or Engine.process.poll() is not None:
            command = [sys.executable, __file__]
            pipe = subprocess.PIPE
            Engine.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            atexit.register(Engine.process.kill)
        assert Engine.process.stdin is not None
        assert Engine.process.stdout is not None
        Engine.process.stdin.write(json.dumps([self.paths, route, body]) + "\n")
        Engine.process.stdin.flush()
        line = Engine.process.stdout.readline()
        assert line, f"llama.cpp crashed on {self.path}"
        answer: Answer = json.loads(line)
        assert "error" not in answer, answer
        return answer


def load(path: str, head: str | None = None) -> object:
    """A server of the child's; the settings are those of the smallest possible one."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx = 256
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup = settings.fit_params = False
    settings.verbosity = -1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if head is not None:
        kinds, draft = xllamacpp.common_speculative_type, settings.speculative.draft
        settings.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3]
        draft.mparams.path = head
        draft.n_max, draft.n_min, draft.p_min = 3, 0, 0.0
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def serve() -> None:
    """Answer requests from stdin, one a line, until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    servers: dict[str, Any] = {}
    for line in sys.stdin:
        paths, route, body = json.loads(line)
        try:
            key = "\n".join(paths)
            server = servers.setdefault(key, servers.get(key) or load(*paths))
            request = urllib.request.Request(
                server.listening_address + route,
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)
        except (OSError, RuntimeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    serve()
