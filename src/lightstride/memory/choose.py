"""The search of memory plans: effects of heads alone first, then plans measured whole.

The effects of all heads at all rules (`effects.py`) are the prior losses of the guided search;
its first plan is the knapsack's optimum over them.  From there whole plans are measured on texts
that want memory, a few texts first, all texts for the best.

Texts are numbered; a sample of the search is a run of texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from lightstride.distributed import gather_objects, rank, world_size
from lightstride.memory.effects import Effects, mean_effects, text_effects
from lightstride.memory.fitness import Judge, Text
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.space import MemorySpace, PlanKey, keeps_for, limit_of
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves
from lightstride.search.result import GenerationReport
from lightstride.search.surrogate import knapsack

WINDOW = 1024
"""Search tokens that one text counts as."""
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How much a search of memory plans measures."""

    context: int
    """Tokens at which a budget is counted."""
    probes: int = 3
    """Backward passes a text for the effects of heads alone."""
    generations: int = 2
    offspring: int = 6
    first_texts: int = 4
    """Texts that every candidate is measured on; the best two are on all the others too."""
    seed: int = 0


def measure_effects(
    model: PreTrainedModel, texts: Sequence[Text], settings: SearchSettings
) -> Effects:
    """Effects of every head at every rule, over all texts; processes share the texts."""
    keeps = keeps_for(settings.context)
    mine = {
        str(index): text_effects(model, text, keeps, settings.probes, settings.seed + index)
        for index, text in enumerate(texts)
        if index % world_size() == rank()
    }
    shared = {key: value for part in gather_objects(mine) for key, value in part.items()}
    return mean_effects(texts, [shared[str(index)] for index in range(len(texts))])


def evaluate_on(judge: Judge, plans: Sequence[PlanKey], sample: Sample) -> list[float]:
    """Loss of each plan over the texts of a sample; processes share the texts."""
    count = -(-sample.tokens // WINDOW)
    wanted = range(sample.first_window, sample.first_window + count)
    values = []
    for plan in plans:
        mine = {str(i): judge.loss(plan.plan, [i]) for i in wanted if i % world_size() == rank()}
        shared = {key: value for part in gather_objects(mine) for key, value in part.items()}
        values.append(sum(shared[str(index)] for index in wanted) / count)
    return values


def search_plans(
    judge: Judge,
    full: MemoryPlan,
    effects: Effects,
    budgets: Sequence[float],
    settings: SearchSettings,
    *,
    log_path: Path | None = None,
    report: Report = lambda line: None,
) -> dict[float, tuple[MemoryPlan, float]]:
    """For each budget, in entries a token, the best plan found and its loss over all texts."""
    space = MemorySpace.of(full, settings.context)
    losses = [effects[block][head] for block, head in space.sites]
    found: dict[float, tuple[MemoryPlan, float]] = {}
    for budget in sorted(set(budgets), reverse=True):
        limit = limit_of(full, budget, settings.context)
        moves = Moves(space, limit)
        centre = space.plan(knapsack(space.level_costs, losses, limit))
        log: EvaluationLog[PlanKey] = EvaluationLog(
            partial(evaluate_on, judge), log_path, f"{budget:g}"
        )
        rest = len(judge.texts) - settings.first_texts
        search = GuidedSearch(
            moves=moves,
            losses=losses,
            settings=GuidedSettings(
                generations=settings.generations,
                offspring=settings.offspring,
                probe_tokens=WINDOW,
                tokens=(WINDOW * settings.first_texts, WINDOW * rest),
                survivors=(2, 1),
            ),
            log=log,
            window=WINDOW,
            prior_slopes=[1.0] * len(losses),
        )
        result = search.run(
            centre,
            settings.seed,
            partial(tell, report, budget),
        )
        found[budget] = (result.plan.plan, result.fitness)
        report(f"memory {budget:g}: loss {result.fitness:.4f} ({spelled(result.plan.plan)})")
    return found


def tell(report: Report, budget: float, state: GenerationReport[PlanKey]) -> None:
    """Report a generation of the search of one budget."""
    report(
        f"memory {budget:g}: generation {state.generation} of {state.generations}, "
        f"loss {state.fitness:.4f}"
    )


def spelled(plan: MemoryPlan) -> str:
    """How many heads keep what, in a few words."""
    counts: dict[Keep, int] = {}
    for block in plan.blocks:
        for keep in block:
            counts[keep] = counts.get(keep, 0) + 1
    return ", ".join(f"{number} x {keep}" for keep, number in sorted(counts.items()))


def by_domain(judge: Judge, plan: MemoryPlan) -> Mapping[str, Mapping[str, float]]:
    """Mean divergence and share of equal likeliest tokens of each domain, over judged tokens."""
    sums: dict[str, list[float]] = {}
    for index, text in enumerate(judge.texts):
        fidelity = judge.fidelity(plan, index)
        total = sums.setdefault(text.domain, [0.0, 0.0, 0.0])
        total[0] += float(fidelity.kl_N.sum())
        total[1] += float(fidelity.same_N.sum())
        total[2] += len(fidelity.kl_N)
    return {
        domain: {"kl": kl / number, "same": same / number}
        for domain, (kl, same, number) in sums.items()
    }
