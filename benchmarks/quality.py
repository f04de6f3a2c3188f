"""What pruned checkpoints are worth: perplexity, seven tasks, size and speed, against the dense.

    python benchmarks/quality.py --models dense=smollm2-135m 25=pruned/25 50=pruned/50 \
        --text wiki.test.raw.gz --task-data FOLDER --work quality.work -o results/quality.json

The first model is what the others are held against.  Perplexity is measured twice: on every tenth
window of 2,048 tokens, as for the published code, and on all of them.  Every measurement (one
model, one text or task) is a result.json of its own in the work folder, and is not made again
while its configuration is the same and the model's files are not newer: kill it anywhere, run it
again.  `--parts` chooses what to measure; what was not measured is null in the output.
`lightstride report WORK` makes a page of the same files.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightstride.checkpoint import read_record
from lightstride.commands.bench import bench
from lightstride.commands.evaluate import evaluate
from lightstride.config import BenchConfig, EvaluateConfig
from lightstride.config.base import Command
from lightstride.evaluate.outcome import read_items, retained
from lightstride.results import markdown_table, read_result
from output import keep

TASKS = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq", "openbookqa")
PARTS = ("sampled", "full", "tasks", "speed")
WINDOW = 2048
EVERY = {"sampled": 10, "full": 1}
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One measurement of one model."""

    model: str
    name: str
    config: EvaluateConfig | BenchConfig
    measure: Callable[[Any], Mapping[str, object]]

    @property
    def path(self) -> Path:
        """Where its result is."""
        return Path(self.config.output) / "result.json"

    def is_done(self) -> bool:
        """Whether its result is there, of this configuration and not older than the model."""
        if not self.path.exists():
            return False
        made = self.path.stat().st_mtime
        files = [p for p in Path(self.config.model).glob("*") if p.is_file()]
        newer = any(file.stat().st_mtime > made for file in files)
        return not newer and same(read_result(self.path)["config"], self.config)


def same(written: Mapping[str, object], config: Command) -> bool:
    """Whether a result has this configuration; bench writes what `auto` came to."""
    return all(
        written[key] == value or (value == "auto" and key in ("device", "dtype"))
        for key, value in config.as_dict().items()
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--text", help="text for the perplexity: WikiText-2 test, raw")
    parser.add_argument("--task-data", help="folder with the tasks' data")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--limit", type=int, help="items of each task; without it, all")
    parser.add_argument(
        "--full", nargs="*", default=[], metavar="NAME", help="models that --limit leaves alone"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", nargs="+", type=int, default=[32, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", required=True)
    parser.add_argument("-o", "--output", required=True)
    given = parser.parse_args()
    if given.text is None and {"sampled", "full"} & set(given.parts):
        parser.error("perplexity needs --text")
    given.models = dict(model.split("=", 1) for model in given.models)
    return given


def units(given: argparse.Namespace) -> list[Unit]:
    """Everything to measure, one part after the other, each on all models."""
    found = []
    for part in given.parts:
        for task in given.tasks if part == "tasks" else [part]:
            for model in given.models:
                name = task_unit(task, model, given) if part == "tasks" else part
                found.append(unit(model, name, part, task, given))
    return found


def task_unit(task: str, model: str, given: argparse.Namespace) -> str:
    """A task with a model's share of its items."""
    limited = given.limit is not None and model not in given.full
    return f"{task}-{given.limit}" if limited else task


def unit(model: str, name: str, part: str, task: str, given: argparse.Namespace) -> Unit:
    """One measurement of one model."""
    place = {"model": given.models[model], "output": str(Path(given.work) / model / name)}
    place |= {"device": given.device, "dtype": given.dtype}
    if part == "speed":
        dense = next(iter(given.models.values()))
        what = {"against": None if place["model"] == dense else dense, "repeats": given.repeats}
        loads = {"batch": given.batch, "prompt": given.prompt}
        return Unit(model, name, BenchConfig.from_dict({**place, **what, **loads}), bench)
    if part == "tasks":
        limit = None if name == task else given.limit
        what = {"tasks": [task], "task_data": given.task_data, "limit": limit}
    else:
        what = {"perplexity": given.text, "window": WINDOW, "every": EVERY[part]}
    return Unit(model, name, EvaluateConfig.from_dict({**place, **what}), evaluate)


def measure_all(todo: Sequence[Unit]) -> dict[tuple[str, str], Numbers]:
    """Numbers of every unit, by model and name; what is there already is read."""
    found: dict[tuple[str, str], Numbers] = {}
    for number, unit in enumerate(todo, start=1):
        if not unit.is_done():
            print(f"[{number}/{len(todo)}] {unit.model}: {unit.name}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                unit.measure(unit.config)
            print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        found[unit.model, unit.name] = read_result(unit.path)["numbers"]
    return found


def summarize(name: str, given: argparse.Namespace, found: Mapping[Any, Numbers]) -> Numbers:
    """All that was measured of one model; null where nothing was."""
    dense = next(iter(given.models))
    mine = {unit: numbers for (model, unit), numbers in found.items() if model == name}
    sizes = [numbers["model"] for numbers in mine.values()]
    source = given.models[name]
    record: Any = read_record(source) if Path(source).is_dir() else {}
    tasks, pairs = scores(name, given, found), {}
    for task, theirs in scores(dense, given, found).items():
        if task in tasks:
            items = read_items(tasks[task]["items"]), read_items(theirs["items"])
            fewest = min(map(len, items))
            if max(map(len, items)) == fewest and tasks[task]["data_hash"] != theirs["data_hash"]:
                continue
            pairs[task] = items[0][:fewest], items[1][:fewest]
    chances = {task: tasks[task]["chance"] for task in pairs}
    kept = {task: retained({task: pair}, chances).as_dict() for task, pair in pairs.items()}
    first = {task: (ours[: given.limit], its[: given.limit]) for task, (ours, its) in pairs.items()}
    speed = mine.get("speed")
    return {
        "source": source,
        "sparsity": record.get("numbers", {}).get("sparsity", 0.0 if name == dense else None),
        "parameters": sizes[0]["parameters"],
        "weight_bytes": sizes[0].get("weight_bytes", sizes[0].get("total_bytes")),
        "perplexity": {
            part: mine[part]["model"]["perplexity"]["value"] if part in mine else None
            for part in EVERY
        },
        "tasks": {
            task: {k: score[k] for k in ("metric", "value", "stderr", "num_items", "chance")}
            for task, score in tasks.items()
        },
        "retained": kept,
        "mean": retained(pairs, chances).as_dict() if pairs else None,
        "first_items": retained(first, chances).as_dict() if first else None,
        "speed": None if speed is None else speed["model"]["loads"],
        "speed_ratios": None if speed is None else speed.get("ratios"),
        "warnings": sorted({line for one in sizes for line in one.get("warnings", ())}),
    }


def scores(name: str, given: argparse.Namespace, found: Mapping[Any, Numbers]) -> Numbers:
    """A model's results by task; all models read the same files, and a limit takes the first."""
    units = {task: (name, task_unit(task, name, given)) for task in given.tasks}
    return {
        task: found[unit]["model"]["tasks"][task] for task, unit in units.items() if unit in found
    }


def table(models: Mapping[str, Numbers], tasks: Sequence[str]) -> str:
    """One line a model, with all parts of the mean."""
    header = ["model", "M parameters", "MB", "ppl (1/10)", "ppl", *tasks, "mean", "retained %"]
    rows = []
    for name, one in models.items():
        mean = one["mean"]
        found = [one["tasks"].get(task) for task in tasks]
        rows.append(
            [
                name,
                f"{one['parameters'] / 1e6:.1f}",
                f"{one['weight_bytes'] / 1e6:.0f}",
                *(number(value, "{:.2f}") for value in one["perplexity"].values()),
                *(number(score and 100 * score["value"], "{:.1f}") for score in found),
                number(mean and 100 * mean["score"], "{:.1f}"),
                number(mean and 100 * mean["ratio"], "{:.1f}"),
            ]
        )
    return markdown_table(header, rows)


def number(value: float | None, form: str) -> str:
    """A number as a table shows it; a dash where there is none."""
    return "–" if value is None else form.format(value)


def main() -> int:
    """Measure what is missing and write the summary; the exit code."""
    given = arguments()
    todo = units(given)
    found = measure_all(todo)
    models = {name: summarize(name, given, found) for name in given.models}
    data = {k: v for unit in todo for k, v in read_result(unit.path)["data"].items()}
    for path in (Path(given.output), Path(given.work) / "result.json"):
        keep(path, "quality", {"models": models}, given, None, data)
    print(table(models, given.tasks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
