"""The search where every block has the same widths: few plans, so all of them race."""

from lightstride.errors import BudgetError
from lightstride.models.shapes import Shape, Site
from lightstride.prune.search.evaluation_log import Ledger, Sample
from lightstride.prune.search.evolution import Found
from lightstride.prune.space.plan import Plan, Space

FINALISTS = 3


def even_plans(space: Space, limit: int) -> list[Plan]:
    """For every attention shape the even plan with the widest FFN within the limit."""
    plans = []
    for attention in common_shapes(space, "attention"):
        for ffn in reversed(common_shapes(space, "ffn")):
            plan = Plan({s: attention if s.kind == "attention" else ffn for s in space.sites})
            if space.total(plan) <= limit:
                plans.append(plan)
                break
    if not plans:
        raise BudgetError(f"no plan with the same widths in every block costs at most {limit}")
    return plans


def common_shapes(space: Space, kind: str) -> list[Shape]:
    """Shapes that all sites of a kind may have, cheapest first."""
    sites: list[Site] = [site for site in space.sites if site.kind == kind]
    return [
        shape
        for shape in space.shapes[sites[0]]
        if all(shape in space.shapes[site] for site in sites)
    ]


def race_even_plans(space: Space, limit: int, ledger: Ledger, tokens: int) -> Found:
    """The best even plan: all race on an eighth of the tokens, the best three on all of them."""
    plans = even_plans(space, limit)
    if len(plans) > FINALISTS:
        values = ledger(plans, Sample(-(-tokens // 8)), {"role": "even", "stage": 0})
        order = sorted(range(len(plans)), key=lambda i: values[i])
        plans = [plans[i] for i in order[:FINALISTS]]
    values = ledger(plans, Sample(tokens), {"role": "even", "stage": 1})
    best = min(range(len(plans)), key=lambda i: values[i])
    return Found(plans[best], values[best], ledger.tokens)
