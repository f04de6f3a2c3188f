"""Which text to calibrate on: a quarter cut away with each, judged on conversations of the model.

    python benchmarks/calibration.py --answers HELD_OUT --texts NAME=SOURCE ... [--output FILE]

Every text gives the same number of tokens and the settings of `examples/demo.py`, without and with
its pass of healing; HELD_OUT are conversations that `benchmarks/conversations.py` made with another
seed.  A result that lies in `--work` already is not made again.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from lightstride import cli
from lightstride.data.windows import strided_windows
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.opening.load import load_model, load_tokenizer
from output import add_output, finish

MODEL = "smollm2-135m"
SETTINGS = (
    *("--sparsity", "0.25", "--preset", "demo", "--search", "none", "--rounds", "1"),
    *("--search-tokens", "2048", "--held-out-tokens", "2048"),
)
WINDOW = 512


def main() -> int:
    """Cut and judge with each text; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="held-out conversations")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration")
    parser.add_argument("--judged-tokens", type=int, default=16384)
    parser.add_argument("--work", type=Path, default=Path("build/calibration"))
    add_output(parser)
    flags = parser.parse_args()
    numbers: dict[str, object] = {"dense": judge(MODEL, flags)}
    for text in flags.texts:
        name, source = text.split("=", 1)
        numbers[name] = {
            "refitted": cut_and_judge(flags.work / name, source, 0, flags),
            "healed": cut_and_judge(flags.work / f"{name}-healed", source, 1, flags),
        }
        print(name, numbers[name], file=sys.stderr)
    finish("calibration", numbers, flags, seed=0)
    return 0


def cut_and_judge(folder: Path, source: str, passes: int, flags: argparse.Namespace) -> object:
    """Perplexity of the model that is cut with this text."""
    if not (folder / "result.json").exists():
        command = ["prune", MODEL, "-o", str(folder), "--calibration", source, "--resume"]
        tokens = ["--calibration-tokens", str(flags.tokens), "--heal", str(passes)]
        if cli.main([*command, *SETTINGS, *tokens]):
            sys.exit(f"pruning with {source} failed")
    return judge(str(folder), flags)


def judge(model: str, flags: argparse.Namespace) -> Mapping[str, float]:
    """Perplexity on the held-out conversations, and how many tokens were predicted."""
    windows = strided_windows(
        str(flags.answers), load_tokenizer(MODEL), window=WINDOW, num_tokens=flags.judged_tokens
    )
    found = perplexity(load_model(model, dtype=torch.bfloat16), windows)
    return {"perplexity": found.value, "tokens": found.num_tokens}


if __name__ == "__main__":
    sys.exit(main())
