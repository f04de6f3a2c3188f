"""The search of memory plans: effects of single heads at one plan after another, then whole plans.

The effects of all heads at all rules (`effects.py`), taken at the full cache, give a first plan:
the knapsack's optimum.  Heads that stand in for each other are each harmless to lose there, and a
plan that loses them all is bad; so effects are taken again at that plan, where they show, and so
on.  Each plan is the optimum over a mean of all effects found so far, the later ones with more
weight, so that heads of which only some have to stay do not all leave and return in turn.  The plan
with the least loss is where the guided search over whole plans starts.

Texts are numbered; a sample of the search is a run of texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightstride.distributed import gather_objects, rank, world_size
from lightstride.memory.effects import Effects, mean_effects, text_effects, text_weights
from lightstride.memory.fitness import Judge
from lightstride.memory.plan import ALL, Keep, MemoryPlan
from lightstride.memory.space import By, MemorySpace, PlanKey, keeps_for, limit_of, spaces_of
from lightstride.search.evaluation_log import EvaluationLog, Sample
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves
from lightstride.search.result import GenerationReport
from lightstride.search.surrogate import knapsack

WINDOW = 1024
"""Search tokens that one text counts as."""
Report = Callable[[str], None]
Measure = Callable[[MemoryPlan], tuple[float, Effects]]
"""The loss of a plan, and what other rules of its heads change."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How much a search of memory plans measures."""

    context: int
    """Tokens at which a budget is counted."""
    by: By = "head"
    probes: int = 3
    """Random backward passes a text for the effects of single heads."""
    rounds: int = 4
    """Plans a budget at which effects are taken."""
    generations: int = 2
    offspring: int = 6
    first_texts: int = 4
    """Texts that every candidate is measured on; the best two are on all the others too."""
    seed: int = 0

    @property
    def keeps(self) -> tuple[Keep, ...]:
        """What heads may keep."""
        return keeps_for(self.context, self.by)


def measure_effects(
    judge: Judge, plan: MemoryPlan, settings: SearchSettings
) -> tuple[float, Effects]:
    """Loss of a plan and effects of every head's rules at it, over all texts; processes share
    the texts."""
    keeps = settings.keeps
    mine = {
        str(index): text_effects(
            judge.model, text, judge.reference[index], plan, keeps, settings.probes,
            settings.seed + index, judge.scores,
        )
        for index, text in enumerate(judge.texts)
        if index % world_size() == rank()
    }  # fmt: skip
    shared = {key: value for part in gather_objects(mine) for key, value in part.items()}
    losses, effects = zip(*(shared[str(index)] for index in range(len(judge.texts))), strict=True)
    weights = text_weights(judge.texts)
    loss = sum(w * each for w, each in zip(weights, losses, strict=True))
    return loss, mean_effects(judge.texts, effects)


def averaged(
    space: MemorySpace, keeps: Sequence[Keep], tables: Sequence[Effects]
) -> list[list[float]]:
    """What each choice costs more than keeping all, site by site; later tables count more.

    Tables have a number for each of `keeps`.
    """
    weights = range(1, len(tables) + 1)
    whole, columns = keeps.index(ALL), {keep: number for number, keep in enumerate(keeps)}
    values = []
    for block, heads in space.sites:
        rows = [(w, t[block][head]) for w, t in zip(weights, tables, strict=True) for head in heads]
        values.append(
            [
                sum(w * (row[columns[keep]] - row[whole]) for w, row in rows) / sum(weights)
                for keep in space.choices[block, heads]
            ]
        )
    return values


def best_space(
    spaces: Sequence[MemorySpace], limit: int, keeps: Sequence[Keep], effects: Effects
) -> MemorySpace:
    """Of the spaces that have plans within the limit the one whose optimum over effects is best."""

    def promised(space: MemorySpace) -> float:
        values = averaged(space, keeps, [effects])
        levels = knapsack(space.level_costs, values, limit)
        return sum(site[level] for site, level in zip(values, levels, strict=True))

    allowed = [s for s in spaces if sum(costs[0] for costs in s.level_costs) <= limit]
    return min(allowed, key=promised)


def linearized(
    space: MemorySpace,
    limit: int,
    keeps: Sequence[Keep],
    tables: list[Effects],
    measure: Measure,
    rounds: int,
    report: Callable[[int, float], None],
) -> PlanKey:
    """The best of the plans that are optima over effects, each taken at the one before.

    `tables` are the effects known so far; those found here are added to them.
    """
    found: dict[str, float] = {}
    best = None
    for number in range(1, rounds + 1):
        plan = space.plan(knapsack(space.level_costs, averaged(space, keeps, tables), limit))
        if plan.key in found:
            break
        loss, effects = measure(plan.plan)
        tables.append(effects)
        report(number, loss)
        if best is None or loss < min(found.values()):
            best = plan
        found[plan.key] = loss
    assert best is not None
    return best


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
    measure: Measure,
    budgets: Sequence[float],
    settings: SearchSettings,
    *,
    log_path: Path | None = None,
    report: Report = lambda line: None,
) -> dict[float, tuple[MemoryPlan, float]]:
    """For each budget, in entries a token, the best plan found and its loss over all texts."""
    spaces = spaces_of(full, settings.context, settings.by)
    tables = [measure(full)[1]]
    found: dict[float, tuple[MemoryPlan, float]] = {}
    for budget in sorted(set(budgets), reverse=True):
        limit = limit_of(full, budget, settings.context, settings.by)
        space = best_space(spaces, limit, settings.keeps, tables[0])
        said = partial(tell_round, report, budget, settings.rounds)
        centre = linearized(space, limit, settings.keeps, tables, measure, settings.rounds, said)
        log: EvaluationLog[PlanKey] = EvaluationLog(
            partial(evaluate_on, judge), log_path, f"{budget:g}"
        )
        losses = averaged(space, settings.keeps, tables)
        search = guided(Moves(space, limit), losses, log, judge, settings)
        result = search.run(centre, settings.seed, partial(tell, report, budget))
        found[budget] = (result.plan.plan, result.fitness)
        report(f"memory {budget:g}: loss {result.fitness:.4f} ({spelled(result.plan.plan)})")
    return found


def guided(
    moves: Moves[PlanKey],
    losses: Sequence[Sequence[float]],
    log: EvaluationLog[PlanKey],
    judge: Judge,
    settings: SearchSettings,
) -> GuidedSearch[PlanKey]:
    """The guided search over whole plans, some texts first and all for the best."""
    rest = len(judge.texts) - settings.first_texts
    return GuidedSearch(
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


def tell_round(report: Report, budget: float, rounds: int, number: int, loss: float) -> None:
    """Report a plan at which effects were taken."""
    report(f"memory {budget:g}: plan {number} of {rounds}, loss {loss:.4f}")


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
