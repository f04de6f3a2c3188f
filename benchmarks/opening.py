"""What the gates cost: processor time to open a model with them and without, in turn.

    python benchmarks/opening.py [MODEL] [--rounds 15] [-o FILE]

Without them means that `check_folder` and `check_weight_files` do nothing; finding weights that
are not finite is counted in both.  Every opening has a process of its own, which begins where
modules are imported and nothing is known of the folder: in one process every second opening took
half as long again, whatever the gates did.  The median of the rounds' ratios is to be at most 1.05.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import torch

from lightstride.checkpoint import open_decoder
from lightstride.models.opening import gate, load

CONTEXT = multiprocessing.get_context("fork")


def seconds(source: str, *, gated: bool) -> float:
    """Processor seconds of one opening, model and tokenizer, in a process of its own."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=report, args=(source, gated, sender))
    process.start()
    found: float = receiver.recv()
    process.join()
    return found


def report(source: str, gated: bool, sender: Connection) -> None:
    """Send the processor seconds of one opening in this process."""
    with ExitStack() as stack:
        if not gated:
            for name in ("check_folder", "check_weight_files"):
                stack.enter_context(patch.object(load, name, lambda *_, **__: {}))
        started = time.process_time()
        open_decoder(source)
        sender.send(time.process_time() - started)


def measure(source: str, rounds: int) -> dict[str, object]:
    """Medians of both, and of their ratio within a round; who comes first changes."""
    open_decoder(source)  # modules are imported, a copy is converted
    gate.check_stamped.cache_clear()
    gc.collect()
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for gated in (True, False) if number % 2 else (False, True):
            times[gated].append(seconds(source, gated=gated))
    ratios = [one / other for one, other in zip(times[True], times[False], strict=True)]
    return {
        "model": source,
        "rounds": rounds,
        "with": statistics.median(times[True]),
        "without": statistics.median(times[False]),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Print the numbers; with -o write them too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.dumps(measure(options.model, options.rounds), indent=2)
    print(found)
    if options.output is not None:
        options.output.write_text(found + "\n", "utf-8")


if __name__ == "__main__":
    main()
