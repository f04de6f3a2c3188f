"""Zero-shot and generation tasks by EleutherAI's lm-eval, over any of our decoders.

Prompts, loading and scoring are lm-eval's (https://github.com/EleutherAI/lm-evaluation-harness);
ours are only the two calls that cost time: log-likelihoods with shared contexts (`scoring.py`)
and generation by the decoder, so that a smashed model emits several tokens per step.

With a folder of task data nothing is downloaded: the definitions in `tasks/` read
`NAME.jsonl(.gz)` there (or in its `zeroshot/` and `instruct/`).  A line of a multiple-choice file
is {"query", "choices", "gold"}; of winogrande also {"contexts", "continuation"}; of gsm8k_train
and gsm8k_test {"question", "answer"}.  The choices follow the query after one space.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from huggingface_hub import constants
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from msgspec import Meta

from lightstride.data.records import read_text
from lightstride.errors import ConfigError, DataError, NetworkError
from lightstride.evaluate.block_reader import BlockReader, weights_of
from lightstride.evaluate.loglikelihood import score
from lightstride.evaluate.outcome import Metric, TaskResult
from lightstride.files.read import parse_json
from lightstride.generate import Decoder, Settings, generate
from lightstride.models.opening.explain import causes_of
from lightstride.models.opening.load import is_local
from lightstride.models.opening.source import WeightSource
from lightstride.progress import Bar

HEADLINES = ("acc_norm,none", "acc,none")
FEWSHOT_SEED = 1234
BOOTSTRAPS = 1000
PLACEHOLDER = "any/dataset"
"""Stands for the hub when it is asked whether it can be reached."""
CONTINUED = "winogrande"
FOLDERS = ("", "zeroshot", "instruct")
SUFFIXES = (".jsonl.gz", ".jsonl")
GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}

logging.getLogger("lm_eval").setLevel(logging.ERROR)


Words = Annotated[str, Meta(min_length=1)]
Choices = Annotated[list[Words], Meta(min_length=2, max_length=100)]
Gold = Annotated[int, Meta(ge=0)]


class Question(msgspec.Struct):
    """A line of a multiple-choice file."""

    query: str
    choices: Choices
    gold: Gold


class Continued(msgspec.Struct):
    """A line of winogrande: two beginnings, one end."""

    contexts: Choices
    continuation: Words
    gold: Gold


class Solved(msgspec.Struct):
    """A line of gsm8k."""

    question: Words
    answer: Words


class HarnessModel(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's Hugging Face model, with its two expensive calls replaced.

    One that is read block by block has log-likelihoods only: all that are asked in one call are
    found in one pass over its weights.
    """

    def __init__(self, decoder: Decoder | BlockReader, *, batch_tokens: int = 2048) -> None:
        super().__init__(
            pretrained=decoder.model, tokenizer=decoder.tokenizer, backend="causal", batch_size=1
        )
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        self.macro_steps = 0
        self.generated_tokens = 0

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of every request, in their order."""
        del override_bs
        model, spill = weights_of(self.decoder)
        is_hidden = disable_tqdm or isinstance(model, WeightSource)  # whose bar counts blocks
        with Bar(total=len(requests), desc="scoring", disable=is_hidden) as bar:
            scores = score(
                model,
                [(context, continuation) for _, context, continuation in requests],
                max_length=self.max_length,
                batch_tokens=self.batch_tokens,
                spill=spill,
                done=bar.update,
                title="" if disable_tqdm else "scoring",
            )
        return [(one.log_likelihood, one.is_greedy) for one in scores]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text generated after every prompt up to its stop strings, in their order."""
        assert not isinstance(self.decoder, BlockReader), "it cannot answer"
        texts: list[str] = [""] * len(requests)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: -len(prompts[index]))
        rows = max(1, self.batch_tokens // max(map(len, prompts)))
        with Bar(total=len(requests), desc="generating", disable=disable_tqdm) as bar:
            while order:
                settings = generation_settings(requests[order[0]].args[1], self.max_gen_toks)
                batch = [
                    i for i in order[:rows] if requests[i].args[1] == requests[order[0]].args[1]
                ]
                order = [i for i in order if i not in batch]
                room = self.max_length - settings.max_new_tokens
                inputs = [prompts[i][-room:] for i in batch]
                for i, generation in zip(
                    batch, generate(self.decoder, inputs, settings), strict=True
                ):
                    texts[i] = cut_at(generation.text, settings.stop)
                    self.macro_steps += generation.macro_steps
                    self.generated_tokens += len(generation.tokens)
                bar.update(len(batch))
        return texts


def generation_settings(arguments: Mapping[str, object], max_new_tokens: int) -> Settings:
    """A task's generation arguments as ours; refuses those we do not have."""
    known = normalize_gen_kwargs(dict(arguments), max_new_tokens)
    if unknown := set(known) - GENERATION_KEYS:
        raise ConfigError(
            f"the task asks for generation with {', '.join(sorted(unknown))}; "
            f"supported are {', '.join(sorted(GENERATION_KEYS))}"
        )
    return Settings(
        max_new_tokens=known["max_gen_toks"],
        temperature=known["temperature"] if known["do_sample"] else 0.0,
        top_k=known.get("top_k", 0),
        top_p=known.get("top_p", 1.0),
        stop=tuple(known["until"]),
    )


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Text before the first stop string in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def offline_tasks() -> list[str]:
    """Names of the tasks that can be read from local files."""
    folder = resources.files("lightstride.evaluate") / "tasks"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def find_file(folder: Path, name: str) -> str:
    """Path of a task's data file in the folder or its known subfolders."""
    for subfolder in FOLDERS:
        for suffix in SUFFIXES:
            if (path := folder / subfolder / f"{name}{suffix}").is_file():
                return str(path)
    raise DataError(f"no {name}.jsonl or {name}.jsonl.gz in {folder}, its zeroshot/ or instruct/")


def check_data(path: Path, kind: type[Question | Continued | Solved]) -> None:
    """Raise DataError, with the line's number, where a file of a task holds anything else."""
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty")
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path} line {number}"
        if line.strip():
            found = parse_json(line, kind, where, DataError)
            if isinstance(found, Question) and found.gold >= len(found.choices):
                raise DataError(f"{where}: gold is {found.gold} of {len(found.choices)} choices")
            if isinstance(found, Continued) and found.gold >= len(found.contexts):
                raise DataError(f"{where}: gold is {found.gold} of {len(found.contexts)} contexts")


def offline_config(name: str, folder: Path) -> dict[str, object]:
    """lm-eval's configuration of one of our tasks, reading this folder's files."""
    if name not in offline_tasks():
        raise ConfigError(
            f"no local definition of task {name!r}; with task data there are "
            f"{', '.join(offline_tasks())}"
        )
    text = (resources.files("lightstride.evaluate") / "tasks" / f"{name}.yaml").read_text("utf-8")
    config: dict[str, object] = yaml.safe_load(text)
    if "training_split" in config:
        files = {split: find_file(folder, f"{name}_{split}") for split in ("train", "test")}
    else:
        files = {"test": find_file(folder, name)}
    kind = Solved if "training_split" in config else Continued if name == CONTINUED else Question
    for file in files.values():
        check_data(Path(file), kind)
    return config | {"dataset_kwargs": {"data_files": files}}


def load_tasks(
    names: Sequence[str], *, task_data: Path | None = None, num_fewshot: int | None = None
) -> dict[str, Task]:
    """lm-eval tasks by name: ours from local files, or lm-eval's own from the hub."""
    if task_data is not None:
        configs = [offline_config(name, task_data) for name in names]
        try:
            loaded = TaskManager(include_defaults=False).load(configs)
        except Exception as error:  # of datasets, pyarrow and pandas, about a line of a file
            said = next((str(e).splitlines()[0] for e in causes_of(error) if str(e)), "damaged")
            raise DataError(f"cannot read the data of {', '.join(names)}: {said}") from error
    else:
        loaded = load_from_hub(names)
    tasks: dict[str, Task] = loaded["tasks"]
    for task in tasks.values():
        shots = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


def load_from_hub(names: Sequence[str]) -> Mapping[str, dict[str, Task]]:
    """lm-eval's own tasks; their data comes from the hub, or offline from its cache."""
    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(f"lm-eval has no task {', '.join(unknown)}; see `lm-eval ls tasks`")
    unreachable = NetworkError(
        f"the data of {', '.join(names)} cannot be fetched from the hub; "
        f"--task-data FOLDER reads {', '.join(offline_tasks())} from local files"
    )
    if is_local(PLACEHOLDER) and not constants.HF_HUB_OFFLINE:
        raise unreachable
    try:
        loaded: Mapping[str, dict[str, Task]] = manager.load(list(names))
    except (OSError, ConnectionError) as error:
        raise unreachable from error
    return loaded


def tasks_of_answers(tasks: Mapping[str, Task]) -> list[str]:
    """The tasks that ask for answers and not for log-likelihoods."""
    return [name for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"]


def run_task(model: HarnessModel, name: str, task: Task, *, limit: int | None = None) -> TaskResult:
    """Result of one task on its first `limit` items (all of them with None)."""
    return run_together(model, {name: task}, limit=limit)[name]


def run_together(
    model: HarnessModel, tasks: Mapping[str, Task], *, limit: int | None = None
) -> dict[str, TaskResult]:
    """Results of tasks whose log-likelihoods are asked in one call."""
    output = evaluate(
        lm=model, task_dict={"tasks": dict(tasks)}, limit=limit, bootstrap_iters=BOOTSTRAPS
    )
    return {name: result_of(name, output) for name in tasks}


def result_of(name: str, output: Mapping[str, Any]) -> TaskResult:
    """A task's part of what lm-eval says."""
    numbers = output["results"][name]
    metrics = {
        key: Metric(float(value), as_number(numbers.get(key.replace(",", "_stderr,"))))
        for key, value in numbers.items()
        if "," in key and "_stderr" not in key
    }
    metric = next((key for key in HEADLINES if key in metrics), next(iter(metrics)))
    base, _, filter_name = metric.partition(",")
    samples = [one for one in output["samples"][name] if one["filter"] == filter_name]
    values = [as_number(one[base]) for one in sorted(samples, key=lambda one: one["doc_id"])]
    choices = [len(one["arguments"]) for one in samples]
    return TaskResult(
        task=name,
        metric=metric,
        metrics=metrics,
        items=() if None in values else tuple(value for value in values if value is not None),
        num_items=len(samples),
        chance=None if min(choices) < 2 else sum(1 / count for count in choices) / len(choices),
        higher_is_better=bool(output["higher_is_better"][name][base]),
        data_hash=hash_items(samples),
    )


def hash_items(samples: Sequence[Mapping[str, object]]) -> str:
    """SHA-256 over lm-eval's own hashes of all items."""
    hashes = sorted(str(one["doc_hash"]) for one in samples)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def as_number(value: object) -> float | None:
    """A float, or None for anything that is not a number."""
    return float(value) if isinstance(value, int | float) else None
