"""Measure healing: what passes of training on the calibration text give back to cut models.

    python benchmarks/heal.py pruned/25 pruned/50 --text wiki.valid.raw.gz --test wiki.test.raw.gz

The protocol is that of `protocol.py`.  Every number of passes has a schedule of its own and
starts from the cut model.  The last line of stdout is one JSON document.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from lightstride.checkpoint import open_decoder, read_record
from lightstride.evaluate.perplexity import perplexity
from lightstride.prune.heal import Healing, heal
from output import add_output, finish
from protocol import Bench, open_bench, random_windows


def healed(bench: Bench, folder: Path) -> dict[str, object]:
    """Perplexity of one cut model, as it is and after so many passes."""
    flags = bench.flags
    tokens_NL = random_windows(bench.text_T, flags.tokens, 512, flags.seed)
    before = open_decoder(str(folder), dtype=torch.bfloat16).model
    record = read_record(str(folder))
    found: dict[str, object] = {
        "sparsity": record["numbers"]["sparsity"],
        "perplexity": perplexity(before, bench.test_NL).value,
    }
    for passes in flags.passes:
        model = open_decoder(str(folder), dtype=torch.bfloat16).model
        healing = Healing(passes=passes, learning_rate=flags.rate, seed=flags.seed)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            heal(model, bench.model, bench.adapter, tokens_NL, healing, Path(work), progress=True)
        seconds = round(time.perf_counter() - start, 1)
        value = perplexity(model, bench.test_NL).value
        found[f"passes_{passes}"] = {"perplexity": value, "seconds": seconds}
        print(folder.name, passes, value, seconds, file=sys.stderr)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders that prune wrote")
    parser.add_argument("--model", default="smollm2-135m", help="the dense model")
    parser.add_argument("--text", type=Path, required=True, help="calibration")
    parser.add_argument("--test", type=Path, required=True, help="perplexity")
    parser.add_argument("--tokens", type=int, default=65_536, help="calibration tokens")
    parser.add_argument("--passes", type=int, nargs="+", default=[1])
    parser.add_argument("--rate", type=float, default=Healing.learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    flags = parser.parse_args()
    bench = open_bench(flags)
    found = {folder.name: healed(bench, folder) for folder in flags.checkpoints}
    finish("heal", found, flags, flags.seed)


if __name__ == "__main__":
    main()
