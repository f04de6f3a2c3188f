"""The plans where every block has the same widths."""

from lightstride.errors import BudgetError
from lightstride.models.shapes import Kind, Shape
from lightstride.prune.space.plan import Plan, Space


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


def common_shapes(space: Space, kind: Kind) -> list[Shape]:
    """Shapes that all sites of a kind may have, cheapest first."""
    choices = [space.choices[site] for site in space.sites if site.kind == kind]
    return [shape for shape in choices[0] if all(shape in others for others in choices)]
