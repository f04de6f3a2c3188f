"""Plans, and the space they are taken from: exact integers, without torch.

A *space* lists for every site its admissible shapes, each with an integer cost (parameters,
bytes or nanoseconds: see `budget.py`).  A *plan* picks one shape for every site and, once
the units are chosen, says which of them stay.  A *limit* is what a plan may cost at most.

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), section 3.3, where a site's
variants lie at equal steps around a centre; we differ: a step is a share of the site's own
parameters, widths are snapped to what the target allows, and budgets never drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from lightstride.errors import WorkError
from lightstride.models.shapes import (
    Geometry,
    Kept,
    Kind,
    Shape,
    Site,
    kept_json,
    parse_kept,
    parse_shape,
    shape_text,
)

Json = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """One shape for every site and, where they are chosen, the units that stay."""

    shapes: Mapping[Site, Shape]
    kept: Mapping[Site, Kept] | None = None

    @cached_property
    def key(self) -> str:
        """The shapes in one line, such as `3x2,1152|2x2,768`: equal for equal shapes."""
        blocks: dict[int, list[str]] = {}
        for site in sorted(self.shapes):
            blocks.setdefault(site.block, []).append(shape_text(self.shapes[site]))
        return "|".join(",".join(texts) for texts in blocks.values())

    def replace(self, changes: Mapping[Site, Shape]) -> "Plan":
        """The plan with other shapes at some sites; the choice of units is dropped."""
        return Plan({**self.shapes, **changes})

    def to_json(self) -> Json:
        """A JSON document that `from_json` reads back."""
        document: Json = {
            "version": 1,
            "shapes": {str(site): shape_text(shape) for site, shape in self.shapes.items()},
        }
        if self.kept is not None:
            document["kept"] = {str(site): kept_json(kept) for site, kept in self.kept.items()}
        return document

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The plan that `to_json` wrote; raises WorkError on anything else."""
        try:
            assert isinstance(document, dict)
            if document["version"] != 1:
                raise WorkError(f"a plan of version {document['version']}; this code reads 1")
            shapes = {Site.parse(s): parse_shape(text) for s, text in document["shapes"].items()}
            kept = document.get("kept")
            if kept is None:
                return cls(shapes)
            return cls(shapes, {Site.parse(s): parse_kept(entry) for s, entry in kept.items()})
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise WorkError(f"not a plan: {str(document)[:80]}") from error


@dataclass(frozen=True)
class Space:
    """For every site its admissible shapes, cheapest first, and what each costs."""

    geometry: Geometry
    shapes: Mapping[Site, tuple[Shape, ...]]
    costs: Mapping[Site, tuple[int, ...]]
    uniform: bool = False
    """Every block takes the same shapes."""

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order they are computed."""
        return tuple(sorted(self.shapes))

    @cached_property
    def _cost_of(self) -> dict[tuple[Site, Shape], int]:
        return {
            (site, shape): cost
            for site in self.sites
            for shape, cost in zip(self.shapes[site], self.costs[site], strict=True)
        }

    def __contains__(self, plan: Plan) -> bool:
        return set(plan.shapes) == set(self.sites) and all(
            item in self._cost_of for item in plan.shapes.items()
        )

    def cost(self, site: Site, shape: Shape) -> int:
        """What one site costs at one of its shapes."""
        return self._cost_of[site, shape]

    def total(self, plan: Plan) -> int:
        """What a whole plan costs."""
        return sum(self._cost_of[item] for item in plan.shapes.items())

    @cached_property
    def smallest(self) -> int:
        """Cost of the cheapest plan."""
        return sum(min(costs) for costs in self.costs.values())

    @cached_property
    def largest(self) -> int:
        """Cost of the dearest plan."""
        return sum(max(costs) for costs in self.costs.values())

    @cached_property
    def ffn_step(self) -> int:
        """Largest difference between neighbouring costs of one FFN: how closely a budget is met."""
        steps = [
            upper - lower
            for site in self.sites
            if site.kind == "ffn"
            for lower, upper in zip(self.costs[site], self.costs[site][1:], strict=False)
        ]
        return max(steps, default=0)

    @cached_property
    def num_plans(self) -> int:
        """How many plans there are, of any cost."""
        product = 1
        for shapes in self.shapes.values():
            product *= len(shapes)
        return product


def sparsity(plan: Plan, geometry: Geometry) -> float:
    """Share of the blocks' own parameters that is gone, by true counts."""
    kept = sum(geometry.parameters(plan.shapes[site]) for site in geometry.sites)
    return 1 - kept / geometry.prunable_parameters


def num_parameters(plan: Plan, geometry: Geometry) -> int:
    """Parameters of the blocks' sites under a plan."""
    return sum(geometry.parameters(plan.shapes[site]) for site in geometry.sites)


def dense_plan(geometry: Geometry) -> Plan:
    """The model as it stands."""
    return Plan({site: geometry.shape(site) for site in geometry.sites})


def kind_cost(space: Space, plan: Plan, kind: Kind) -> int:
    """What the sites of one kind cost together."""
    return sum(space.cost(s, shape) for s, shape in plan.shapes.items() if s.kind == kind)
