"""What so many minutes of learning give back to a cut model, beside what others make of them.

    python benchmarks/recover.py --cuts 25=rec/25 50=rec/50 --minutes 10 60 --methods ours depth \
        --text wiki.train.tokens.gz:2 c4_sample.jsonl.gz --test wiki.test.raw.gz \
        --prompts mt_bench.jsonl.gz --work recover.work --output results/recover.json

A row is a method, a size and minutes (0: before learning):

    ours       the given folder, which prune wrote, then `lightstride recover`
    depth      blocks that change their input least are taken out, then the same learning
    optipfair  FFN widths cut evenly and trained by that package's own `distill_model`

All are as large as the given cut, as near as whole blocks or channels allow, and have the same
text, minutes and machine; `--clock processor` counts processor time, for a machine that others
use.  `dense` and its copies in Q8_0 and Q4_K_M are measured alike.  Perplexity as in
`protocol.py`; fidelity on the first of its windows; last words of passages of the test text, or
of `--passages`; greedy answers to `--prompts` that loop or end; `--tasks` on their first items.

Every row is a file of its own in the work folder; what it holds is not measured again, and what
else is asked for is added.  A recovery that was killed goes on.  The last line of stdout is one
JSON document.
"""

import argparse
import json
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from judge import YARDSTICKS, Judge
from lightstride.checkpoint import save_checkpoint
from lightstride.commands.recover import recover
from lightstride.config import RecoverConfig
from lightstride.files import write_json
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.results import read_result
from output import add_output, finish
from rivals import depth_cut, optipfair_cut, optipfair_trained, removed_share

METHODS = ("ours", "depth", "optipfair")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="the dense model")
    parser.add_argument("--cuts", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--minutes", type=float, nargs="*", default=[10, 60])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ours"])
    parser.add_argument("--yardsticks", nargs="*", choices=YARDSTICKS, default=list(YARDSTICKS))
    parser.add_argument("--text", nargs="+", required=True, metavar="SOURCE[:WEIGHT]")
    parser.add_argument("--answers", nargs="*", default=[], metavar="PATH[:WEIGHT]")
    parser.add_argument("--held-out", help="text of the learning curve; else of the first text")
    parser.add_argument("--tokens", type=int, default=1_048_576, help="most tokens to learn from")
    parser.add_argument("--held-out-tokens", type=int, help="tokens of each measurement of it")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--test", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--every", type=int, default=10, help="windows of the perplexity")
    parser.add_argument("--fidelity-windows", type=int, default=4)
    parser.add_argument("--passages", help="text of the last words; else the test text")
    parser.add_argument("--num-passages", type=int, default=300)
    parser.add_argument("--prompts", help="prompts whose answers are looked at for loops")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--instructions", type=int, default=0, help="instructions to follow")
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--task-data", help="folder with the tasks' data")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    add_output(parser)
    return parser.parse_args()


def recovered(cut: Path, row: str, minutes: float, flags: argparse.Namespace) -> dict[str, object]:
    """Let a cut folder learn, or go on with it; the figures of its own result."""
    output, work = flags.work / "models" / row, flags.work / "learning" / row
    given = {
        "model": str(cut),
        "output": str(output),
        "work": str(work),
        "resume": work.exists(),
        "minutes": minutes,
        "teacher": flags.model,
        "text": flags.text,
        "answers": tuple(flags.answers),
        "held_out": flags.held_out,
        "tokens": flags.tokens,
        "held_out_tokens": flags.held_out_tokens,
        "clock": flags.clock,
        "seed": flags.seed,
    }
    if not (output / "result.json").exists():
        recover(RecoverConfig.from_dict(given))
    numbers = read_result(output / "result.json")["numbers"]
    return {name: found for name, found in numbers.items() if name != "losses"}


def cut_folder(method: str, size: str, given: Path, flags: argparse.Namespace) -> Path:
    """The folder of a cut model of a method, as large as the given one; made where it is not."""
    folder: Path = given if method == "ours" else flags.work / "models" / f"{method}-{size}"
    if not folder.exists():
        dense = load_model(flags.model, dtype=torch.bfloat16)
        share = removed_share(given)
        if method == "depth":
            cut, found = depth_cut(dense, share, flags)
        else:
            cut, found = optipfair_cut(dense, share)
        record = {"kind": "prune", "config": {"model": flags.model}, "numbers": {"sparsity": found}}
        save_checkpoint(cut, load_tokenizer(flags.model), folder, record=record)
    return folder


def trained(method: str, cut: Path, row: str, minutes: float, flags: argparse.Namespace) -> object:
    """Let a model of a method learn for so many minutes; how it went."""
    if method == "optipfair":
        return optipfair_trained(cut, flags.work / "models" / row, minutes, flags)
    return recovered(cut, row, minutes, flags)


def measure(name: str, source: str, judge: Judge, flags: argparse.Namespace) -> dict[str, Any]:
    """Write a row with all figures that are asked for; those that it has are kept."""
    path = row_path(name, flags)
    row = json.loads(path.read_text()) if path.exists() else {}
    start = time.process_time()
    found = judge.measured(source, row)
    if found:
        row |= found
        spent = row.get("judging_processor_seconds", 0.0) + time.process_time() - start
        row["judging_processor_seconds"] = round(spent, 1)
        write_json(path, row)
        print(name, json.dumps(found), file=sys.stderr, flush=True)
    return row


def measure_cut(
    name: str, method: str, folder: Path, minutes: float, judge: Judge, flags: argparse.Namespace
) -> dict[str, Any]:
    """Let a cut model learn, unless it has; its row."""
    source = flags.work / "models" / name if minutes else folder
    path = row_path(name, flags)
    if not path.exists():
        learned = trained(method, folder, name, minutes, flags) if minutes else None
        write_json(path, {"sparsity": removed_share(folder), "learning": learned})
    return measure(name, str(source), judge, flags)


def row_path(name: str, flags: argparse.Namespace) -> Path:
    """Where a row is kept."""
    folder: Path = flags.work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


def run(flags: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All rows by name; what is not there is made."""
    judge, rows = Judge(flags), {}
    for name in ("dense", *flags.yardsticks):
        rows[name] = measure(name, flags.model if name == "dense" else name, judge, flags)
    for cut in flags.cuts:
        size, _, given = cut.partition("=")
        for method in flags.methods:
            folder = cut_folder(method, size, Path(given), flags)
            for minutes in (0.0, *flags.minutes):
                name = f"{method}-{size}-{minutes:g}"
                rows[name] = measure_cut(name, method, folder, minutes, judge, flags)
    for row in rows.values() if flags.tasks else ():
        scores, whole = row["tasks"], rows["dense"]["tasks"]
        row["tasks_kept"] = kept_share(scores, whole, flags.tasks)
        row["tasks_kept_without"] = {
            left_out: kept_share(scores, whole, set(flags.tasks) - {left_out})
            for left_out in flags.tasks
            if len(flags.tasks) > 1
        }
    return rows


def kept_share(
    scores: Mapping[str, float], whole: Mapping[str, float], names: Collection[str]
) -> float:
    """The sum of these tasks' scores over that of the dense model's."""
    return sum(scores[name] for name in names) / sum(whole[name] for name in names)


def main() -> None:
    """Run the benchmark."""
    flags = arguments()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    finish("recover", {"threads": torch.get_num_threads(), "rows": run(flags)}, flags, flags.seed)


if __name__ == "__main__":
    main()
