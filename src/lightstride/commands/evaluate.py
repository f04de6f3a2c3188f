"""The command `evaluate`: perplexity and tasks of one model, or of two side by side."""

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightstride.checkpoint import plans_of, read_record
from lightstride.commands.evaluating.fidelity import compare, comparison_text, open_whole
from lightstride.commands.evaluating.streamed import (
    TOKENS_PER_SEQUENCE,
    blockwise,
    open_blocks,
)
from lightstride.commands.outputs import printed, result_writer, save_result
from lightstride.config import EvaluateConfig
from lightstride.data.documents import read_documents
from lightstride.data.prompts import read_prompts
from lightstride.data.windows import Windows, strided_windows
from lightstride.errors import ConfigError
from lightstride.evaluate.block_reader import BlockReader, weights_of
from lightstride.evaluate.outcome import Retained, TaskResult, retained
from lightstride.evaluate.perplexity import Perplexity, perplexity
from lightstride.evaluate.tables import MEAN, retained_table, score_table
from lightstride.generate import Decoder
from lightstride.models.opening.load import load_config, locate
from lightstride.results import Numbers

ROLES = ("calibration", "search", "recovery")


@dataclass(frozen=True)
class ModelReport:
    """All that was measured of one model."""

    source: str
    parameters: int
    weight_bytes: int
    perplexity: Perplexity | None
    tasks: tuple[TaskResult, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    data: Mapping[str, str]
    """Every source read, and its hash."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        text = self.perplexity
        return {
            "source": self.source,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "perplexity": None if text is None else dict(vars(text)),
            "tasks": {one.task: one.as_dict() for one in self.tasks},
            "seconds": dict(self.seconds),
            "warnings": list(self.warnings),
        }


def evaluate(config: EvaluateConfig) -> Mapping[str, object]:
    """Judge the model, and the one it is held against; the result, as in `result.json`."""
    with result_writer(config):
        return evaluate_alone(config)


def evaluate_alone(config: EvaluateConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    check_inputs(config)
    with printed() as told:  # what was measured is told, however it ends
        model = measure_model(config.model, config)
        told.append(model_text(model))
        numbers: Numbers = {"model": model.as_dict()}
        if config.against is not None:
            against = measure_model(config.against, config)
            found = retention(model, against)
            told += [model_text(against), pair_text(model, against, found)]
            kept = {task: one.as_dict() for task, one in found.items()}
            numbers |= {"against": against.as_dict(), "retained": kept}
        if config.is_compared:
            compared = compare(config)
            told.append(comparison_text(compared))
            numbers |= compared
        return save_result("evaluate", config, numbers, data=model.data)


def check_inputs(config: EvaluateConfig) -> None:
    """Read a little of all that is opened later, so that a mistake ends the command at once."""
    if config.against is not None:
        place = locate(config.against)
        load_config(config.against, place, trust_remote_code=config.trust_remote_code)
    if config.kv is not None:
        plans_of(config.model, config.kv)
    for text in (config.perplexity, config.fidelity):
        if text is not None:
            read_documents(text, enough_characters=1)
    if config.loops is not None:
        read_prompts([config.loops], limit=1)
    answered = []
    if config.task_names:
        answered = load_harness().tasks_of_answers(named_tasks(config))
    check_memory(config, answered)


def check_memory(config: EvaluateConfig, answered: Sequence[str]) -> None:
    """ConfigError where `--memory` is too little for what is asked, answers to tasks among it."""
    models = [name for name in (config.model, config.against) if name is not None]
    for name in models:
        if blockwise([name], config) is not None and answered:
            raise ConfigError(
                f"--memory {config.memory}: {name} is larger, so it is read block by block, and "
                f"{', '.join(answered)} asks for answers, which needs the whole of it in memory"
            )
    if config.is_compared:
        blockwise(models, config)


def measure_model(source: str, config: EvaluateConfig) -> ModelReport:
    """Open a model, or its blocks one by one, and measure what the configuration asks for."""
    how = blockwise([source], config)
    reader = open_whole(source, config) if how is None else open_blocks(source, how, config)
    batch_size = config.batch_size if how is None else how.batch_size
    record = read_record(source) if Path(source).is_dir() else {}
    data: dict[str, str] = {}
    seconds: dict[str, float] = {}
    warnings: list[str] = []
    text = None
    if config.perplexity is not None:
        start = time.perf_counter()
        windows = read_windows(reader.tokenizer, config)
        model, spill = weights_of(reader)
        text = perplexity(model, windows, batch_size=batch_size, spill=spill, progress=True)
        seconds["perplexity"] = time.perf_counter() - start
        data[config.perplexity] = windows.sha256
        warnings = told_leaks(source, windows, record)
    tasks = run_tasks(reader, config, TOKENS_PER_SEQUENCE * batch_size, seconds)
    parameters = list(reader.model.parameters())
    return ModelReport(
        source=source,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.nbytes for p in parameters),
        perplexity=text,
        tasks=tuple(tasks),
        seconds=seconds,
        warnings=tuple(warnings),
        data=data | {one.task: one.data_hash for one in tasks},
    )


def told_leaks(source: str, windows: Windows, record: Mapping[str, object]) -> list[str]:
    """What `leaked_documents` finds, also written to stderr."""
    warnings = leaked_documents(windows, record)
    for line in warnings:
        sys.stderr.write(f"lightstride: warning: {source}: {line}\n")
    return warnings


def read_windows(tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Windows:
    """The text to measure perplexity on, in the model's own tokens."""
    assert config.perplexity is not None
    return strided_windows(
        config.perplexity,
        tokenizer,
        window=config.window,
        stride=config.stride,
        every=config.every,
    )


def run_tasks(
    reader: Decoder | BlockReader,
    config: EvaluateConfig,
    batch_tokens: int,
    seconds: dict[str, float],
) -> list[TaskResult]:
    """Results of the configured tasks; the time of each goes to `seconds`.

    A model that is read block by block is read once for all of them, and so has one time.
    """
    if not config.task_names:
        return []
    harness, tasks = load_harness(), named_tasks(config)
    model = harness.HarnessModel(reader, batch_tokens=batch_tokens)
    runs = {name: {name: task} for name, task in tasks.items()}
    if isinstance(reader, BlockReader):
        runs = {"tasks": dict(tasks)}
    results: list[TaskResult] = []
    for name, some in runs.items():
        start = time.perf_counter()
        results += harness.run_together(model, some, limit=config.limit).values()
        seconds[name] = time.perf_counter() - start
    return results


def named_tasks(config: EvaluateConfig) -> Mapping[str, Any]:
    """The harness's tasks by name; DataError or ConfigError where one cannot be had."""
    folder = None if config.task_data is None else Path(config.task_data)
    tasks: Mapping[str, Any] = load_harness().load_tasks(
        config.task_names, task_data=folder, num_fewshot=config.num_fewshot
    )
    return tasks


def load_harness() -> ModuleType:
    """The harness module, which needs lm-eval and takes seconds to import."""
    if find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-eval: pip install 'lightstride[eval]'")
    return importlib.import_module("lightstride.evaluate.lm_harness")


def leaked_documents(windows: Windows, record: Mapping[str, object]) -> list[str]:
    """A line for each way in which a checkpoint was made from documents it is now judged on."""
    used = record.get("data", {})
    assert isinstance(used, dict)
    lines = []
    for role in ROLES:
        data = used.get(role)
        shared = windows.documents & set(
            data.get("documents", ()) if isinstance(data, dict) else ()
        )
        if shared:
            lines.append(
                f"{len(shared)} of the {len(windows.documents)} documents of {windows.source} "
                f"were used for its {role}; the perplexity is too good"
            )
    return lines


def retention(model: ModelReport, against: ModelReport) -> dict[str, Retained]:
    """Shares that a model retains of another's scores, by task; `mean` is of their mean."""
    theirs = {one.task: one for one in against.tasks}
    pairs = {
        one.task: (one.items, theirs[one.task].items)
        for one in model.tasks
        if one.items and one.higher_is_better
    }
    chances = {one.task: one.chance for one in model.tasks}
    found = {task: retained({task: pair}, chances) for task, pair in pairs.items()}
    return found | ({MEAN: retained(pairs, chances)} if len(pairs) > 1 else {})


def model_text(one: ModelReport) -> str:
    """What was measured of one model, for a person."""
    parts = []
    if one.perplexity is not None:
        value, tokens = one.perplexity.value, one.perplexity.num_tokens
        parts.append(f"{one.source}: perplexity {value:.2f} over {tokens:,} tokens")
    if one.tasks:
        parts.append(f"{one.source}\n\n{score_table(one.tasks)}\n")
    return "\n\n".join(parts)


def pair_text(model: ModelReport, against: ModelReport, found: Mapping[str, Retained]) -> str:
    """How one model stands to another, for a person."""
    parts = []
    if model.perplexity is not None and against.perplexity is not None:
        ratio = model.perplexity.value / against.perplexity.value
        parts.append(f"ratio of perplexities {ratio:.3f}")
    if found:
        names = [Path(one.source).name for one in (model, against)]
        parts.append(f"retained, in percent\n\n{retained_table(found, *names)}\n")
    return "\n\n".join(parts)
