"""Plans, and the space they are taken from: exact integers, without torch.

A *space* lists for every site its admissible shapes, each with an integer cost (parameters,
bytes or nanoseconds: see `budget.py`).  A *plan* picks one shape for every site and, once
the units are chosen, says which of them stay.  A *limit* is the highest cost of a plan.

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), section 3.3, where a site's
variants lie at equal steps around a centre; we differ: a step is a share of the site's own
parameters, widths are snapped to the target's, and budgets never drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Self

from lightstride.errors import WorkError
from lightstride.models.shapes import (
    FFNShape,
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
from lightstride.search.space import SiteSpace

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
class Space(SiteSpace[Site, Shape, Plan]):
    """For every site its admissible shapes, cheapest first, and the cost of each."""

    geometry: Geometry
    uniform: bool = False
    """Every block takes the same shapes."""

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order they are computed."""
        return tuple(sorted(self.choices))

    @cached_property
    def channel_step(self) -> int:
        """What widths of experts are multiples of, as those of all together are; 1 without them."""
        widths = [
            shape.num_channels
            for site in self.sites
            for shape in self.choices[site]
            if isinstance(shape, FFNShape) and self.geometry.experts(site)
        ]
        return gcd(*widths) or 1

    def group(self, site: Site) -> str:
        """Attention and FFN are the two groups."""
        return site.kind

    def make_plan(self, choices: Mapping[Site, Shape]) -> Plan:
        """The plan of these shapes."""
        return Plan(choices)

    def choices_of(self, plan: Plan) -> Mapping[Site, Shape]:
        """The shapes of a plan."""
        return plan.shapes


def sparsity(plan: Plan, geometry: Geometry) -> float:
    """Share of the blocks' own parameters that is gone, by true counts."""
    kept = sum(geometry.parameters(plan.shapes[site]) for site in geometry.sites)
    return 1 - kept / geometry.prunable_parameters


def num_parameters(plan: Plan, geometry: Geometry) -> int:
    """Parameters of the blocks' sites under a plan."""
    return sum(geometry.parameters(plan.shapes[site]) for site in geometry.sites)


def active_parameters(plan: Plan, geometry: Geometry) -> float:
    """Those of them that a token meets: of experts, those that it is sent to."""
    return sum(geometry.active(site, plan.shapes[site]) for site in geometry.sites)


def dense_plan(geometry: Geometry) -> Plan:
    """The model as it stands."""
    return Plan({site: geometry.shape(site) for site in geometry.sites})


def kind_cost(space: Space, plan: Plan, kind: Kind) -> int:
    """Cost of all sites of one kind."""
    return sum(space.cost(s, shape) for s, shape in plan.shapes.items() if s.kind == kind)
