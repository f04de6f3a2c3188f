"""The memory part of `lightstride smash --kv`: search plans for a model, and say what they cost."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.commands.memory_texts import memory_texts
from lightstride.distributed import barrier, broadcast_object, rank
from lightstride.errors import ConfigError
from lightstride.files import write_json
from lightstride.generate import PlainDecoder
from lightstride.memory.attention import check_readable, heads_of
from lightstride.memory.choose import (
    SearchSettings,
    by_domain,
    measure_effects,
    search_plans,
    spelled,
)
from lightstride.memory.effects import Effects
from lightstride.memory.fitness import Judge, Text
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.plan_files import MemoryFile
from lightstride.memory.space import limit_of
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint

Numbers = dict[str, object]
EFFECTS, EVALUATIONS = "memory-effects.json", "memory-search.jsonl"
EFFECTS_OVER_FORWARD = 6.0
"""Time of all effects on a text, in forwards of it, as measured with SmolLM2-135M and 3 probes."""


@dataclass(frozen=True, kw_only=True)
class MemorySearch:
    """How memory plans are searched: budgets, texts, and how much is measured."""

    budgets: tuple[float, ...]
    context: int = 1000
    conversations: int = 8
    recalls: int = 4
    length: int = 1100
    probes: int = 2
    generations: int = 2
    offspring: int = 5
    seed: int = 0

    @property
    def settings(self) -> SearchSettings:
        """What the search itself is told."""
        return SearchSettings(
            context=self.context,
            probes=self.probes,
            generations=self.generations,
            offspring=self.offspring,
            seed=self.seed,
        )


def full_plan(model: PreTrainedModel) -> MemoryPlan:
    """The plan of a model's full cache; ModelError where its attention cannot be split."""
    check_readable(model)
    head_dim = adapter_for(model.config).geometry(model.config).head_dim
    return MemoryPlan.full(heads_of(model), head_dim, fingerprint(model))


def check_budgets(model: PreTrainedModel, search: MemorySearch) -> None:
    """Refuse budgets that no plan of this model has, before anything is computed."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < search.length + 1:
        raise ConfigError(
            f"--kv is searched on texts of {search.length} tokens, and this model's context is "
            f"{longest}"
        )
    for budget in search.budgets:
        limit_of(full_plan(model), budget, search.context)


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
    written = time.perf_counter()
    judge = Judge(model, texts, full)
    say(forecast(search, texts, time.perf_counter() - written))
    effects = known_effects(model, texts, search, folder)
    plans = search_plans(
        judge,
        full,
        effects,
        search.budgets,
        search.settings,
        log_path=None if folder is None else folder / EVALUATIONS,
        report=say,
    )
    held_out = held_out_texts(model, tokenizer, search)
    other = Judge(model, held_out, full)
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
    return MemoryFile(found, search.budgets[0]), {**facts, "plans": numbers}


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


def held_out_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, search: MemorySearch
) -> list[Text]:
    """Texts of another seed, which judge what was found; one conversation a domain."""
    others = MemorySearch(
        **{**asdict(search), "conversations": 3, "recalls": 4, "seed": search.seed + 1}
    )
    return shared_texts(model, tokenizer, others, None)


def known_effects(
    model: PreTrainedModel, texts: Sequence[Text], search: MemorySearch, folder: Path | None
) -> Effects:
    """Effects of all heads, from the folder if they are there."""
    path = None if folder is None else folder / EFFECTS
    if path is not None and path.is_file():
        effects: Effects = json.loads(path.read_text("utf-8"))["effects"]
        return effects
    found = measure_effects(model, texts, search.settings)
    if path is not None and rank() == 0:
        write_json(path, {"effects": found})
    barrier()
    return found


def forecast(search: MemorySearch, texts: Sequence[Text], seconds: float) -> str:
    """One line on how long the search will take, from the time of one forward of all texts."""
    first = search.settings.first_texts / len(texts)
    each = (search.offspring + 1) * first + 3 * (1 - first)
    forwards = EFFECTS_OVER_FORWARD + len(search.budgets) * (1 + search.generations * each)
    kinds = ", ".join(f"{budget:g}" for budget in search.budgets)
    return f"memory plans for {kinds}: about {forwards * seconds / 60:.0f} minutes"


def say(line: str) -> None:
    """Show a line of progress, once."""
    if rank() == 0:
        sys.stderr.write(line + "\n")
