"""The memory part of `lightstride smash --kv`: search plans for a model, and say what they cost."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.checkpoint import (
    is_headed,
    is_saved,
    open_headed,
    save_checkpoint,
    save_headed,
)
from lightstride.commands.outputs import identity, printed, save_result
from lightstride.commands.smashing.facts import NewDrafter
from lightstride.commands.smashing.memory_texts import COPY_LENGTH, memory_texts
from lightstride.config import SmashRunConfig
from lightstride.config.smash import ONCE_FLAGS
from lightstride.distributed import barrier, broadcast_object, broadcast_tensor, rank
from lightstride.errors import ConfigError, WorkError
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.generate import PlainDecoder
from lightstride.memory.cache import full_plan
from lightstride.memory.choose import (
    Measure,
    SearchSettings,
    by_domain,
    measure_effects,
    search_plans,
    spelled,
)
from lightstride.memory.effects import Effects
from lightstride.memory.fitness import Judge, Text
from lightstride.memory.learn_scores import learn_scores
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.plan_files import (
    SCORES_FILE,
    MemoryFile,
    read_scores,
    write_plans,
    write_scores,
)
from lightstride.memory.scores import Scores
from lightstride.memory.space import By, PlanKey, limit_of
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_tokenizer, local_folder
from lightstride.results import Numbers, markdown_table
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.headed import read_headed
from lightstride.work import open_work

ROUNDS, EVALUATIONS = "memory-rounds.json", "memory-search.jsonl"
EFFECTS_OVER_FORWARD = 7.0
"""Time of all effects on a text, in forwards of it, as measured with SmolLM2-135M and 1 probe."""


@dataclass(frozen=True)
class Round:
    """What was measured at one plan of the search."""

    loss: float
    effects: Effects


@dataclass(frozen=True, kw_only=True)
class MemorySearch:
    """How memory plans are searched: budgets, texts, and how much is measured."""

    budgets: tuple[float, ...]
    context: int = 1000
    by: By = "head"
    conversations: int = 4
    recalls: int = 4
    length: int = 1100
    probes: int = 1
    rounds: int = 2
    generations: int = 1
    offspring: int = 4
    seed: int = 0

    @property
    def settings(self) -> SearchSettings:
        """What the search itself is told."""
        return SearchSettings(
            context=self.context,
            by=self.by,
            probes=self.probes,
            rounds=self.rounds,
            generations=self.generations,
            offspring=self.offspring,
            seed=self.seed,
        )


def memory_search(config: SmashRunConfig) -> MemorySearch:
    """The search that the flags ask for: texts are a little longer than the budget's context."""
    length = int(1.1 * config.kv_context)
    return MemorySearch(
        budgets=config.kv,
        context=config.kv_context,
        by=config.kv_by,
        length=length,
        seed=config.seed,
    )


def plan_memory(config: SmashRunConfig, device: str, dtype: torch.dtype) -> Mapping[str, object]:
    """Give a smashed model memory plans, all else as it is; the result, as in `result.json`."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    base, save = opened(config, tokenizer, device, dtype)
    search = memory_search(config)
    check_budgets(base, search)
    folder, output = Path(config.work_folder), Path(config.output)
    unasked = () if config.kv_by == "block" else ("kv_by",)
    run = {**identity(config, "answers", *unasked), "base": fingerprint(base)}
    open_work(folder, run, resume=config.resume, gone=ONCE_FLAGS)
    plans, numbers = search_memory(base, tokenizer, search, folder)
    result: Mapping[str, object] = {}
    if rank() == 0:
        if not is_saved(output):
            save(output, {"kind": "memory", "config": config.as_dict()})
        write_plans(output, plans, {"memory": numbers})
        with printed(plans_table(numbers)):
            result = save_result("memory", config, numbers, seed=config.seed)
    barrier()
    return result


def opened(
    config: SmashRunConfig, tokenizer: PreTrainedTokenizerBase, device: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, Callable[[Path, Mapping[str, object]], None]]:
    """The base of a smashed model, and what saves the whole of it into a folder, with a record."""
    trust = config.trust_remote_code
    if is_headed(config.model):
        base, head = open_headed(config.model, dtype=dtype, device=device, trust_remote_code=trust)
        name = read_headed(local_folder(config.model)).base

        def save_both(output: Path, record: Mapping[str, object]) -> None:
            save_headed(head, base, name, tokenizer, output, record=record)

        return base, save_both
    model = SmashModel.from_pretrained(
        config.model, dtype=dtype, device=device, trust_remote_code=trust
    )

    def save(output: Path, record: Mapping[str, object]) -> None:
        save_checkpoint(model, tokenizer, output, record=record)

    return model.base, save


def with_plans(
    config: SmashRunConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: NewDrafter,
) -> NewDrafter:
    """What was learned, and memory plans of its base, which are saved beside it."""
    plans, numbers = search_memory(base, tokenizer, memory_search(config), Path(config.work_folder))

    def write(output: Path, record: Mapping[str, object]) -> None:
        drafter.write(output, record)
        write_plans(output, plans, {"memory": numbers})

    return replace(drafter, numbers={**drafter.numbers, "memory": numbers}, write=write)


def plans_table(numbers: Numbers) -> str:
    """What the plans cost, for a person."""
    plans = numbers["plans"]
    assert isinstance(plans, dict)
    rows = [
        [budget, domain, f"{each['kl']:.4f}", f"{each['same']:.3f}"]
        for budget, found in plans.items()
        for domain, each in found["held_out"].items()
    ]
    return markdown_table(["entries a token", "domain", "KL in nats", "same token"], rows)


def check_budgets(model: PreTrainedModel, search: MemorySearch) -> None:
    """Refuse budgets that no plan of this model has, before anything is computed."""
    longest = getattr(model.config, "max_position_embeddings", None)
    needed = int(COPY_LENGTH * search.length)
    if isinstance(longest, int) and longest < needed + 1:
        raise ConfigError(
            f"--kv is searched on texts of up to {needed} tokens, and this model's context is "
            f"{longest}"
        )
    for budget in search.budgets:
        limit_of(full_plan(model), budget, search.context, search.by)


def search_memory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    search: MemorySearch,
    folder: Path | None = None,
) -> tuple[MemoryFile, Numbers]:
    """Plans for all budgets, and what they cost on texts that no candidate was measured on.

    With a folder the search goes on from what is there.
    """
    started = time.perf_counter()
    full = full_plan(model)
    texts = shared_texts(model, tokenizer, search, folder)
    scores = learned_scores(model, texts, full, folder) if search.by == "head" else None
    written = time.perf_counter()
    judge = Judge(model, texts, full, scores)
    say(forecast(search, texts, time.perf_counter() - written))
    plans = search_plans(
        judge,
        full,
        known_measures(judge, search, folder),
        search.budgets,
        search.settings,
        log_path=None if folder is None else folder / EVALUATIONS,
        report=say,
    )
    held_out = held_out_texts(model, tokenizer, search)
    other = Judge(model, held_out, full, scores)
    numbers: Numbers = {
        f"{budget:g}": {
            "heads": spelled(plan),
            "entries_per_token": {
                str(n): round(plan.share(n), 4) for n in (500, 1000, 2000, 4000, 8000)
            },
            "exact_up_to": plan.exact_up_to,
            "searched_loss": loss,
            "held_out": by_domain(other, plan),
        }
        for budget, (plan, loss) in plans.items()
    }
    facts: Numbers = {"search": asdict(search), "seconds": time.perf_counter() - started}
    found = {budget: plan for budget, (plan, _) in plans.items()}
    return MemoryFile(found, search.budgets[0], scores), {**facts, "plans": numbers}


def shared_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    search: MemorySearch,
    folder: Path | None,
) -> list[Text]:
    """The texts of the search; rank 0 writes them, all ranks have them."""
    texts: list[Text] = []
    if rank() == 0:
        texts = memory_texts(
            PlainDecoder(model, tokenizer),
            conversations=search.conversations,
            recalls=search.recalls,
            length=search.length,
            seed=search.seed,
            folder=folder,
        )
    return [Text.from_dict(each) for each in broadcast_object([t.as_dict() for t in texts])]


def learned_scores(
    model: PreTrainedModel, texts: Sequence[Text], full: MemoryPlan, folder: Path | None
) -> Scores:
    """Scores by which heads choose, from the texts of the search; rank 0 learns them."""
    if rank() != 0:
        found = Scores.zeros(full)
    elif folder is not None and (folder / SCORES_FILE).is_file():
        found = read_scores(folder)
    else:
        found = learn_scores(model, [text.tokens for text in texts])
        if folder is not None:
            write_scores(folder, found)
    return Scores([broadcast_tensor(weight) for weight in found.blocks])


def held_out_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, search: MemorySearch
) -> list[Text]:
    """Texts of another seed, which judge what was found; one conversation a domain."""
    others = MemorySearch(
        **{**asdict(search), "conversations": 3, "recalls": 4, "seed": search.seed + 1}
    )
    return shared_texts(model, tokenizer, others, None)


def known_measures(judge: Judge, search: MemorySearch, folder: Path | None) -> Measure:
    """Losses and effects at plans; with a folder those measured before are read from there."""
    path = None if folder is None else folder / ROUNDS
    known: dict[str, Round] = {}
    if path is not None and path.is_file():
        known = read_sealed(path, dict[str, Round], WorkError)

    def measure(plan: MemoryPlan) -> tuple[float, Effects]:
        key = PlanKey(plan).key
        if key not in known:
            known[key] = Round(*measure_effects(judge, plan, search.settings))
            if path is not None and rank() == 0:
                write_sealed(path, {each: asdict(found) for each, found in known.items()})
            barrier()
        return known[key].loss, known[key].effects

    return measure


def forecast(search: MemorySearch, texts: Sequence[Text], seconds: float) -> str:
    """One line on how long the search will take, from the time of one forward of all texts."""
    first = search.settings.first_texts / len(texts)
    each = (search.offspring + 1) * first + 3 * (1 - first)
    rounds = 1 + search.rounds * len(search.budgets)
    whole = len(search.budgets) * (1 + search.generations * each)
    forwards = EFFECTS_OVER_FORWARD * rounds + whole
    kinds = ", ".join(f"{budget:g}" for budget in search.budgets)
    return f"memory plans for {kinds}: about {forwards * seconds / 60:.0f} minutes"


def say(line: str) -> None:
    """Show a line of progress, once."""
    if rank() == 0:
        sys.stderr.write(line + "\n")
