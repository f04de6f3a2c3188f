"""llama.cpp in this process, for tests: load a GGUF, ask for tokens and log-probabilities."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import torch
import xllamacpp
from torch import Tensor


class Engine:
    """One GGUF loaded on the CPU, with keys and values kept in fp32."""

    def __init__(self, path: Path, *, context: int = 256) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup = settings.fit_params = False
        settings.verbosity = -1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(settings)

    def log_probabilities(self, prompt: Sequence[int], vocab_size: int) -> Tensor:
        """Of the token after a prompt, shape (V,)."""
        answer = self.server.handle_completions(
            {
                "prompt": list(prompt),
                "n_predict": 1,
                "temperature": 0,
                "n_probs": vocab_size,
                "cache_prompt": False,
            }
        )
        assert "choices" in answer, answer
        (step,) = answer["choices"][0]["logprobs"]["content"]
        found = torch.full((vocab_size,), float("nan"))
        for entry in step["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The engine's own tokens of a text."""
        return self.ask("/tokenize", {"content": text, "add_special": add_special})["tokens"]

    def ask(self, path: str, body: dict) -> dict:
        """One request over loopback."""
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)
