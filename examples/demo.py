"""Make SmolLM2-135M-Instruct a quarter smaller, then let both models answer side by side.

    python examples/demo.py [FOLDER] [FLAGS of lightstride prune ...]

What is compared are two ordinary checkpoint folders, opened by plain transformers: this script
uses the package only to make the smaller one and to save the original in the same precision.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from lightstride import cli
from lightstride.checkpoint import save_checkpoint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.results import markdown_table, read_result

MODEL = "smollm2-135m"
QUESTION = "What is a lighthouse for?"
NEW_TOKENS = 64
ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Prune, compare, print; the exit code."""
    named = bool(arguments) and not arguments[0].startswith("-")
    folder = Path(arguments[0] if named else "demo")
    flags = arguments[1:] if named else arguments
    dense, pruned = folder / "dense", folder / "pruned"
    command = ["prune", MODEL, "-o", str(pruned), "--sparsity", "0.25", "--preset", "demo"]
    print("lightstride", *command, *flags, file=sys.stderr, flush=True)
    code = cli.main([*command, "--resume", *flags])
    if code:
        return code
    if not dense.exists():
        save_checkpoint(
            load_model(MODEL, dtype=torch.bfloat16), load_tokenizer(MODEL), dense, record=None
        )
    compare(dense, pruned)
    return 0


def compare(dense: Path, pruned: Path) -> None:
    """Print one table and one answer of each model."""
    logging.disable_progress_bar()
    numbers = read_result(pruned / "result.json")["numbers"]
    perplexities = [numbers["dense"], numbers["sizes"][0]]  # type: ignore[index]
    models, asks = zip(*(open_plain(path) for path in (dense, pruned)), strict=True)
    seconds: list[list[float]] = [[], []]
    answers = ["", ""]
    for _ in range(ROUNDS + 1):  # in turn, so that both see the same machine
        for index, ask in enumerate(asks):
            start = time.perf_counter()
            answers[index] = ask()
            seconds[index].append(time.perf_counter() - start)
    rows = [
        ["parameters (M)", *(f"{count(model) / 1e6:.1f}" for model in models)],
        ["size on disk (MB)", *(f"{size(path) / 1e6:.0f}" for path in (dense, pruned))],
        ["perplexity, held-out text", *(f"{each['perplexity']:.2f}" for each in perplexities)],
        ["tokens/s", *(f"{NEW_TOKENS / median(each[1:]):.1f}" for each in seconds)],
    ]
    print(f"\n{markdown_table(['', 'before', 'after'], rows)}\n")
    for name, answer in zip(("before", "after"), answers, strict=True):
        print(f"{QUESTION}\n{name}: {' '.join(answer.split())}\n")
    print(f"the smaller model is in {pruned}")


def open_plain(path: Path) -> tuple[Any, Callable[[], str]]:
    """A model as anybody would open it, and a function that lets it answer the question."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, trust_remote_code=True
    ).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )

    def ask() -> str:
        output = model.generate(
            **prompt, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
        )
        text: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], True)
        return text

    return model, ask


def count(model: torch.nn.Module) -> int:
    """Number of parameters; a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
