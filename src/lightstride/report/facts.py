"""The contents of run folders, gathered model by model. No torch, no model is opened.

Results of several commands about one model are joined by the name it was opened under.  The
keys read from `numbers`, by the kind of the result:

    prune      dense and sizes (each: folder, sparsity, parameters, bytes, perplexity, plan)
    evaluate   model, against, retained
    bench      model, against, machine
    quality    models (benchmarks/quality.py)
    smash      nothing but its own table

A plan is a line such as `3x2,1152|2x2,768`: for each block KV heads x queries a group, channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta, ValidationError, convert

from lightstride.errors import DataError
from lightstride.files import read_lines
from lightstride.files.read import Count, parse_json
from lightstride.report.measured import Benched, BenchedLoad, Compared, Evaluated, Judged, Pruned
from lightstride.results import Result, read_result

Comparison = dict[str, Compared]
"""One model against another: each task, and last their mean."""
HELD_OUT = "held-out text"
LONGEST_NAME = 40
"""Characters of a name in tables and pictures."""


@dataclass(frozen=True)
class Block:
    """Widths of one block."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True)
class Evaluation:
    """One line of `search.jsonl`: a candidate and what it scored."""

    tokens: Count
    fitness: Annotated[float, Meta(ge=-1e300)]
    scope: str = ""
    generation: Count = 0


@dataclass
class ModelFacts:
    """All that is known of one model."""

    source: str
    name: str
    """Its name in a table."""
    parameters: int | None = None
    weight_bytes: int | None = None
    sparsity: float | None = None
    perplexities: dict[str, float] = field(default_factory=dict)
    """By the text: its source and number of tokens."""
    tasks: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Score and standard error of each task."""
    items: dict[str, int] = field(default_factory=dict)
    """Items of each task."""
    scores: dict[str, Sequence[float]] = field(default_factory=dict)
    """The score of each item of a task, where it is known."""
    leveled: dict[str, float] = field(default_factory=dict)
    """Score on a task's first items, as many as every model has, where this one has more."""
    loads: list[BenchedLoad] = field(default_factory=list)
    plan: list[Block] | None = None
    dense_plan: list[Block] | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean score over its tasks, on the items that all models have."""
        scores = [self.leveled.get(task, score) for task, (score, _) in self.tasks.items()]
        return sum(scores) / len(scores) if scores else None


@dataclass(frozen=True)
class Facts:
    """Everything the page is made of."""

    models: tuple[ModelFacts, ...]
    """Largest first."""
    searches: Mapping[str, Sequence[Evaluation]]
    """By the file's folder."""
    results: Mapping[str, Result]
    """By the file's path."""
    retained: tuple[tuple[str, str, Comparison], ...]
    """(model, against, task -> numbers) of every comparison."""

    @property
    def texts(self) -> list[str]:
        """All texts with a perplexity, those that a run held out by itself last."""
        texts = {text: None for model in self.models for text in model.perplexities}
        return sorted(texts, key=lambda text: text.startswith(HELD_OUT))

    def text(self, *models: ModelFacts) -> str | None:
        """The text on which most of these models have a perplexity, none meaning all models."""
        judged = models or self.models
        counts = {text: sum(text in m.perplexities for m in judged) for text in self.texts}
        return max(counts, key=lambda text: counts[text], default=None)


def shorten(path: str) -> str:
    """The last two parts of a path, or their end."""
    name = "/".join(part for part in Path(path).parts[-2:] if part != "/")
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def canonical_name(source: str) -> str:
    """One name for a model, whichever way its folder was written."""
    path = Path(source)
    return str(path.resolve()) if path.is_dir() else source.rstrip("/")


def facts_of(models: dict[str, ModelFacts], source: str) -> ModelFacts:
    """The facts of a model, new ones if nothing is known of it yet."""
    name = canonical_name(source)
    return models.setdefault(name, ModelFacts(name, shorten(source)))


def read_plan(plan: str | None) -> list[Block] | None:
    """Widths of every block of a plan's line; None where there is no plan."""
    if plan is None:
        return None
    blocks = []
    for text in plan.split("|"):
        attention, _, channels = text.partition(",")
        kv_heads, _, queries = attention.partition("x")
        blocks.append(Block(int(kv_heads) * int(queries), int(kv_heads), int(channels)))
    return blocks


def read_folders(folders: Sequence[str]) -> Facts:
    """Everything in these folders and below; DataError where there is no result."""
    models: dict[str, ModelFacts] = {}
    retained: Retained = []
    results: dict[str, Result] = {}
    searches: dict[str, list[Evaluation]] = {}
    for path in files_named("result.json", folders):
        results[str(path)] = (result := read_result(path))
        try:
            READERS.get(result["kind"], no_reader)(result, models, retained)
        except (KeyError, ValueError, StopIteration, ValidationError) as error:
            raise DataError(f"{path} is no whole result of {result['kind']}: {error}") from error
    for path in files_named("search.jsonl", folders):
        add_search(searches, str(path.parent), list(read_search(path)))
    if not results:
        raise DataError(f"no result.json in {', '.join(folders)} or below")
    compare_on_common_items(list(models.values()))
    largest_first = sorted(models.values(), key=lambda one: (-(one.parameters or 0), one.source))
    return Facts(tuple(largest_first), searches, results, tuple(retained))


def compare_on_common_items(models: Sequence[ModelFacts]) -> None:
    """Let means compare like with like where some models saw only the first items of a task."""
    for task, fewest in common_items(models).items():
        for model in models:
            if len(found := model.scores.get(task, ())) > fewest:
                model.leveled[task] = sum(found[:fewest]) / fewest


def common_items(models: Sequence[ModelFacts]) -> dict[str, int]:
    """How many items of each task all have that were given it."""
    tasks = {task for model in models for task in model.tasks}
    return {task: min(m.items[task] for m in models if task in m.items) for task in tasks}


def files_named(name: str, folders: Sequence[str]) -> list[Path]:
    """Files of this name in these folders and below, each once; DataError for what is no folder."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder} is no folder")
        for path in sorted(Path(folder).rglob(name)):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def add_search(
    searches: dict[str, list[Evaluation]], folder: str, evaluations: list[Evaluation]
) -> None:
    """Add a search unless it is known: an output folder has a copy of its work folder's record.

    Of two records where one is the beginning of the other, the longer stays.
    """
    for other, known in searches.items():
        shorter = min(len(known), len(evaluations))
        if shorter and known[:shorter] == evaluations[:shorter]:
            searches[other] = max(known, evaluations, key=len)
            return
    searches[folder] = evaluations


def read_search(path: Path) -> Iterator[Evaluation]:
    """Every whole line of a search's record."""
    for number, line in enumerate(read_lines(path), start=1):
        yield parse_json(line, Evaluation, f"{path} line {number}", DataError)


Retained = list[tuple[str, str, Comparison]]


def no_reader(result: Result, models: dict[str, ModelFacts], retained: Retained) -> None:
    """A result that only its own table shows."""


def read_evaluation(result: Result, models: dict[str, ModelFacts], retained: Retained) -> None:
    """Perplexity, tasks and size of one model or two."""
    numbers, config = result["numbers"], result["config"]
    for role in ("model", "against"):
        if numbers.get(role) is None:
            continue
        found = convert(numbers[role], Evaluated)
        model = facts_of(models, found.source)
        model.parameters, model.weight_bytes = found.parameters, found.weight_bytes
        if found.perplexity is not None and found.perplexity.value is not None:
            text = f"{Path(str(config['perplexity'])).name}, {found.perplexity.num_tokens:,} tokens"
            model.perplexities[text] = found.perplexity.value
        for task, score in found.tasks.items():
            if score.num_items >= model.items.get(task, 0):
                model.tasks[task] = (score.value, score.stderr)
                model.items[task] = score.num_items
                model.scores[task] = [float(item) for item in score.items]
    compared = convert(numbers.get("retained") or {}, Comparison)
    if compared:
        ours, theirs = canonical_name(str(config["model"])), canonical_name(str(config["against"]))
        retained.append((ours, theirs, compared))


def read_bench(result: Result, models: dict[str, ModelFacts], retained: Retained) -> None:
    """Speed and memory of one model or two."""
    for role in ("model", "against"):
        if result["numbers"].get(role) is not None:
            found = convert(result["numbers"][role], Benched)
            model = facts_of(models, found.source)
            model.parameters, model.weight_bytes = found.parameters, found.total_bytes
            model.loads = found.loads


def read_prune(result: Result, models: dict[str, ModelFacts], retained: Retained) -> None:
    """The dense model and the checkpoints of one pruning run."""
    config, found = result["config"], convert(result["numbers"], Pruned)
    held_out = config.get("held_out") or config["calibration"]
    text = f"{HELD_OUT}, {Path(str(held_out)).name}"
    dense_plan = read_plan(found.dense.plan)
    for folder, cut in ((str(config["model"]), found.dense), *((c.folder, c) for c in found.sizes)):
        model = facts_of(models, folder)
        model.parameters, model.weight_bytes, model.sparsity = (
            cut.parameters,
            cut.bytes,
            cut.sparsity,
        )
        model.plan, model.dense_plan = read_plan(cut.plan), dense_plan
        check_plans(model.plan, dense_plan)
        if cut.perplexity is not None:
            model.perplexities[text] = cut.perplexity


def check_plans(plan: Sequence[Block] | None, dense: Sequence[Block] | None) -> None:
    """ValueError unless every block of a plan is a part of the dense model's."""
    if plan is None or dense is None:
        return
    if len(plan) != len(dense):
        raise ValueError("its plans have different numbers of blocks")
    for kept, whole in zip(plan, dense, strict=True):
        for part, all_of_it in zip(astuple(kept), astuple(whole), strict=True):
            if not 0 <= part <= all_of_it or not all_of_it:
                raise ValueError("a plan keeps more than its dense model has")


def read_quality(result: Result, models: dict[str, ModelFacts], retained: Retained) -> None:
    """Sparsities, and what every model retains of the first; the rest is in results of its own."""
    found = convert(result["numbers"]["models"], dict[str, Judged])
    dense = canonical_name(next(iter(found.values())).source)
    for one in found.values():
        model = facts_of(models, one.source)
        model.parameters, model.weight_bytes = one.parameters, one.weight_bytes
        model.sparsity = one.sparsity
        if one.mean is not None and model.source != dense:
            means = {"mean": one.mean} if len(one.retained) > 1 else {}
            retained.append((model.source, dense, {**one.retained, **means}))


READERS = {
    "evaluate": read_evaluation,
    "bench": read_bench,
    "prune": read_prune,
    "quality": read_quality,
}
