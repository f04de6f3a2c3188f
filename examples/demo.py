"""SmolLM2-135M-Instruct three times: as it is, a quarter smaller, and several tokens a step.

    python examples/demo.py [FOLDER] [FLAGS of lightstride prune ...]

The first answer comes before the long work begins.  The smaller model is really made here, from
conversations of the model with itself (`conversations.jsonl`, made by
`benchmarks/conversations.py`); the third is the model with the grafts that are built in, whose
answers are drawn from the model's own distribution.  All three answer in turn with one seed, as
the model's makers advise (temperature 0.2, top p 0.9), and with a repetition penalty: without it
half of the dense model's answers loop (`LOG.md`).
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

from lightstride import cli
from lightstride.checkpoint import open_decoder
from lightstride.generate import Decoder, Generation, Settings, Step, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.models.opening.builtin import graft_folder
from lightstride.results import markdown_table, read_result

MODEL = "smollm2-135m"
SMASHED = "smollm2-135m-smash"
TEXT = Path(__file__).with_name("conversations.jsonl")
QUESTION = "What is a lighthouse for?"
SETTINGS = Settings(max_new_tokens=96, temperature=0.2, top_p=0.9, repetition_penalty=1.1, seed=0)
PRUNE = (
    *("prune", MODEL, "--sparsity", "0.25", "--preset", "demo", "--calibration", str(TEXT)),
    *("--calibration-tokens", "8192", "--search-tokens", "2048", "--held-out-tokens", "2048"),
    *("--search", "none", "--rounds", "1", "--heal", "1"),
)
"""Even widths, refitted and healed for a pass: at a quarter a search gains little (`LOG.md`)."""
ROUNDS = 3
START = time.perf_counter()


def main(arguments: list[str]) -> int:
    """Answer, prune, answer again, compare; the exit code."""
    named = bool(arguments) and not arguments[0].startswith("-")
    folder = Path(arguments[0] if named else "demo")
    flags = arguments[1:] if named else arguments
    pruned = folder / "pruned"
    stage(f"opening {MODEL}")
    decoders = {"as it is": open_decoder(MODEL, dtype=torch.bfloat16)}
    stage(f"{MODEL} as it is: {QUESTION}")
    stream(decoders["as it is"])
    decoders["several tokens a step"] = open_decoder(SMASHED, dtype=torch.bfloat16)
    stage(f"{SMASHED}, several tokens a step: {QUESTION}")
    stream(decoders["several tokens a step"])
    command = [*PRUNE, "-o", str(pruned), "--resume", *flags]
    stage(f"lightstride {' '.join(command)}")
    code = cli.main(command)
    if code:
        return code
    decoders["a quarter smaller"] = open_decoder(str(pruned), dtype=torch.bfloat16)
    stage("all three in turn")
    compare(decoders, pruned)
    stage(f"done; the smaller model is in {pruned}")
    return 0


def stage(text: str) -> None:
    """Say on stderr what begins, and at which second."""
    print(f"[{time.perf_counter() - START:3.0f} s] {text}", file=sys.stderr, flush=True)


def stream(decoder: Decoder) -> Generation:
    """Let a model answer the question on stdout, as it comes; the answer."""

    def show(step: Step) -> None:
        print(step.text[0], end="", flush=True)

    answer = ask(decoder, show)
    print(
        f"\n  ({len(answer.tokens)} tokens in {answer.macro_steps} steps, "
        f"{answer.tokens_per_second:.1f} tokens/s)\n",
        flush=True,
    )
    return answer


def ask(decoder: Decoder, show: Callable[[Step], None] | None = None) -> Generation:
    """One answer to the question."""
    prompt = chat_tokens(decoder.tokenizer, [{"role": "user", "content": QUESTION}])
    return generate(decoder, [prompt], SETTINGS, on_step=show)[0]


def compare(decoders: Mapping[str, Decoder], pruned: Path) -> None:
    """Print one table and one answer of each model."""
    names = ["as it is", "a quarter smaller", "several tokens a step"]
    answers: dict[str, list[Generation]] = {name: [] for name in names}
    for _ in range(ROUNDS):  # in turn, so that all see the same machine
        for name in names:
            answers[name].append(ask(decoders[name]))
    numbers = read_result(pruned / "result.json")["numbers"]
    dense, smaller = numbers["dense"], numbers["sizes"][0]  # type: ignore[index]
    grafts = sum(path.stat().st_size for path in graft_folder(SMASHED).glob("*.safetensors"))
    columns = [
        [dense["parameters"], dense["bytes"], f"{dense['perplexity']:.2f}"],
        [smaller["parameters"], smaller["bytes"], f"{smaller['perplexity']:.2f}"],
        [dense["parameters"] + grafts / 2, dense["bytes"] + grafts, "as it is"],
    ]
    speeds = [median(each.tokens_per_second for each in answers[name]) for name in names]
    steps = [answers[name][0].tokens_per_step for name in names]
    rows = [
        ["parameters (M)", *(f"{column[0] / 1e6:.1f}" for column in columns)],
        ["size (MB)", *(f"{column[1] / 1e6:.0f}" for column in columns)],
        ["perplexity, held-out conversations", *(str(column[2]) for column in columns)],
        ["tokens a step", *(f"{each:.2f}" for each in steps)],
        ["tokens/s", *(f"{each:.1f}" for each in speeds)],
    ]
    print(f"\n{markdown_table(['', *names], rows)}\n\n{QUESTION}\n")
    for name in names:
        print(f"{name}: {' '.join(answers[name][0].text.split())}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
