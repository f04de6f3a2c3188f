"""Centres and levels: which plans a search starts from, and which shapes it looks at.

Everything here is exact: shares are fractions, costs are integers, and a limit is never
exceeded.  See `plan.py` for the words.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from fractions import Fraction

from lightstride.errors import BudgetError
from lightstride.models.shapes import NO_ATTENTION, AttentionShape, Shape, Site
from lightstride.prune.space.plan import Plan, Space


def limit_for(share: float, dense_cost: int, space: Space) -> int:
    """Highest cost of a plan that lacks `share` of the dense cost; BudgetError if none does."""
    limit = int(dense_cost * (1 - Fraction(str(share))))
    if not 0 < share < 1 or not space.smallest <= limit:
        highest = 1 - space.smallest / dense_cost
        lowest = max(0.0, 1 - space.largest / dense_cost)
        raise BudgetError(
            f"sparsity {share:g} cannot be reached here; "
            f"between {lowest:.4f} and {highest:.4f} is possible"
        )
    return limit


def uniform_plan(space: Space, share: float, limit: int) -> Plan:
    """The plan under `limit` that cuts attention and FFN alike, the same share in every block.

    Attention takes the shape nearest to the share; of equally near ones the shape with more
    query heads, which loses less.  The FFN takes the rest of the budget.  Only where that is
    not enough do blocks lose their attention whole, the last ones first.
    """
    wanted = 1 - Fraction(str(share))
    attention = {
        site: _nearest_attention(space, site, wanted)
        for site in space.sites
        if site.kind == "attention"
    }
    while True:
        plan = _fill_ffn(space, attention, limit)
        if plan is not None:
            return plan
        smaller = {site: _next_smaller(space, site, shape) for site, shape in attention.items()}
        if smaller == attention:
            smaller |= _drop_last_attention(space, attention)
        if smaller == attention:
            raise BudgetError(f"no uniform plan costs at most {limit}")
        attention = smaller


def narrow(space: Space, centre: Plan, step: Fraction, num_levels: int = 9) -> Space:
    """The part of a space within `num_levels // 2` steps around a centre, centre included.

    A step is a share of the dense site's parameters.  Where shapes are coarser than the step,
    the nearest smaller and the nearest larger shape stay, so that every site can still move.
    """
    shapes: dict[Site, tuple[Shape, ...]] = {}
    for site in space.sites:
        pick = _narrow_attention if site.kind == "attention" else _narrow_ffn
        chosen = pick(space, site, centre.shapes[site], step, num_levels)
        shapes[site] = tuple(shape for shape in space.choices[site] if shape in chosen)
    return with_shapes(space, shapes)


def with_shapes(space: Space, shapes: Mapping[Site, tuple[Shape, ...]]) -> Space:
    """The space with only these shapes, at the costs they have in it."""
    costs = {site: tuple(space.cost(site, shape) for shape in shapes[site]) for site in space.sites}
    return Space(dict(shapes), costs, space.geometry, space.uniform)


def _parameters(space: Space, site: Site, shape: Shape | None = None) -> int:
    dense = space.geometry.shape(site)
    return space.geometry.parameters(dense if shape is None else shape)


def _nearest_attention(space: Space, site: Site, wanted: Fraction) -> Shape:
    goal = wanted * _parameters(space, site)

    def distance(shape: Shape) -> tuple[Fraction, int]:
        assert isinstance(shape, AttentionShape)
        return abs(_parameters(space, site, shape) - goal), -shape.num_heads

    return min((s for s in space.choices[site] if s != NO_ATTENTION), key=distance)


def _next_smaller(space: Space, site: Site, shape: Shape) -> Shape:
    """The dearest shape that costs less but something, or the shape itself if there is none."""
    cost = space.cost(site, shape)
    cheaper = [other for other in space.choices[site] if space.cost(site, other) < cost]
    return cheaper[-1] if cheaper and cheaper[-1] != NO_ATTENTION else shape


def _drop_last_attention(space: Space, attention: Mapping[Site, Shape]) -> dict[Site, Shape]:
    """The last attention that there is and may be lost, at nothing; empty if there is none."""
    for site in reversed(list(attention)):
        if attention[site] != NO_ATTENTION and NO_ATTENTION in space.choices[site]:
            return {site: NO_ATTENTION}
    return {}


def _fill_ffn(space: Space, attention: Mapping[Site, Shape], limit: int) -> Plan | None:
    """Attention as given and the widest FFNs of one common share that fit, or None."""
    ffns = [site for site in space.sites if site.kind == "ffn"]
    shares = sorted(
        {
            Fraction(_parameters(space, site, shape), _parameters(space, site))
            for site in ffns
            for shape in space.choices[site]
        }
    )

    def plan_at(share: Fraction) -> Plan:
        widths = {site: _widest_within(space, site, share) for site in ffns}
        return Plan({site: {**attention, **widths}[site] for site in space.sites})

    fitting = bisect_left(shares, True, key=lambda s: space.total(plan_at(s)) > limit)
    return plan_at(shares[fitting - 1]) if fitting else None


def _widest_within(space: Space, site: Site, share: Fraction) -> Shape:
    room = int(share * _parameters(space, site))
    shapes = space.choices[site]
    fitting = bisect_right(shapes, room, key=lambda shape: _parameters(space, site, shape))
    return shapes[max(fitting - 1, 0)]


def _narrow_ffn(
    space: Space, site: Site, centre: Shape, step: Fraction, num_levels: int
) -> set[Shape]:
    shapes = space.choices[site]
    chosen = {centre}
    for goal in _parameter_targets(space, site, centre, step, num_levels):
        right = bisect_left(shapes, goal, key=lambda shape: _parameters(space, site, shape))
        beside = shapes[max(right - 1, 0) : right + 1]
        chosen.add(min(beside, key=lambda shape: abs(_parameters(space, site, shape) - goal)))
    return chosen | _neighbours(space, site, centre)


def _narrow_attention(
    space: Space, site: Site, centre: Shape, step: Fraction, num_levels: int
) -> set[Shape]:
    """All shapes in reach if they are few; else two near each step: most and fewest query heads."""
    here = _parameters(space, site, centre)
    unit = step * _parameters(space, site)
    reach = (num_levels // 2) * unit
    within = [s for s in space.choices[site] if abs(_parameters(space, site, s) - here) <= reach]
    near = {centre} | _neighbours(space, site, centre)
    if len(within) <= num_levels:
        return near | set(within)
    for goal in _parameter_targets(space, site, centre, step, num_levels):
        here_too = [s for s in within if abs(_parameters(space, site, s) - goal) <= unit / 2]
        by_heads = sorted(here_too, key=_num_heads)
        near |= {*by_heads[:1], *by_heads[-1:]}
    return near


def _parameter_targets(
    space: Space, site: Site, centre: Shape, step: Fraction, num_levels: int
) -> list[int]:
    """Parameters at equal steps around the centre."""
    here, unit = _parameters(space, site, centre), step * _parameters(space, site)
    half = num_levels // 2
    return [round(here + offset * unit) for offset in range(-half, half + 1)]


def _num_heads(shape: Shape) -> tuple[int, int]:
    assert isinstance(shape, AttentionShape)
    return shape.num_heads, shape.num_kv_heads


def _neighbours(space: Space, site: Site, centre: Shape) -> set[Shape]:
    """The shape itself and the shapes of the next lower and the next higher cost."""
    cost = space.cost(site, centre)
    below = [c for c in space.costs[site] if c < cost]
    above = [c for c in space.costs[site] if c > cost]
    near = {cost, *below[-1:], *above[:1]}
    return {s for s in space.choices[site] if space.cost(site, s) in near}
