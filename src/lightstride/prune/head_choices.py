"""Operations of choosing the heads that an attention keeps, counted as `choose_units.py` does them.

Taking R inputs out of I, of output weights with O rows, is R^3 / 3 + R^2 (O + K) + 2 R K (O + K)
with K = I - R; asking only what that costs is R^3 / 3 + R^2 O.

Shapes: as in `cut/choose_units.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from lightstride.models.shapes import NO_ATTENTION, AttentionShape, Shape
from lightstride.prune.cut.choose_units import MOST_TREE_GROUPS, num_cuts
from lightstride.prune.cut.refit import EXHAUSTIVE

Wanted = dict[int, list[int]]
"""Of each number of groups that is asked for, how many queries of each group go."""


def choice_operations(
    dense: AttentionShape, shapes: Sequence[Shape], head_dim: int, outputs: int
) -> float:
    """Choosing the heads of all these shapes: all ways where there are few, else two paths."""
    smaller = [shape for shape in shapes if isinstance(shape, AttentionShape)]
    smaller = [shape for shape in smaller if shape not in (dense, NO_ATTENTION)]
    few = [shape for shape in smaller if num_cuts(shape, dense) <= EXHAUSTIVE]
    many = [shape for shape in smaller if num_cuts(shape, dense) > EXHAUSTIVE]
    counter = ChoiceCounter(dense, head_dim, outputs)
    return counter.all_ways(few) + (counter.two_paths(many) if many else 0.0)


@dataclass(frozen=True)
class ChoiceCounter:
    """Counts for one dense attention."""

    dense: AttentionShape
    head_dim: int
    outputs: int

    def removal(self, inputs: int, gone: int) -> float:
        """Taking inputs out."""
        rest = inputs - gone
        both = self.outputs + rest
        return gone**3 / 3 + gone**2 * both + 2.0 * gone * rest * both

    def question(self, gone: int) -> float:
        """What taking inputs out would cost."""
        return gone**3 / 3 + gone**2 * self.outputs

    def all_ways(self, shapes: Sequence[AttentionShape]) -> float:
        """Every set of groups, and after it every set of queries in each."""
        groups, queries = self.dense.num_kv_heads, self.dense.queries_per_group
        wanted: Wanted = {}
        for shape in shapes:
            gone = queries - shape.queries_per_group
            wanted.setdefault(shape.num_kv_heads, []).append(gone)
        whole = self.queries_gone(groups, wanted.get(groups, []))
        if groups <= MOST_TREE_GROUPS:
            return whole + self.ways_below(groups, groups, wanted)
        fewer = [(kept, gone) for kept, gone in wanted.items() if kept < groups]
        return whole + sum(
            comb(groups, kept) * self.set_gone(groups, groups - kept, gone) for kept, gone in fewer
        )

    def ways_below(self, before: int, later: int, wanted: Wanted) -> float:
        """One of the later groups goes, then one of those after it, as far as is asked for."""
        total, left = 0.0, before - 1
        for rest in reversed(range(later)):
            below = {n: gone for n, gone in wanted.items() if left - rest <= n < left}
            if below or left in wanted:
                total += self.set_gone(before, 1, wanted.get(left, []), goes_on=bool(below))
            if below:
                total += self.ways_below(left, rest, below)
        return total

    def set_gone(
        self, before: int, count: int, queries: Sequence[int], *, goes_on: bool = False
    ) -> float:
        """So many of the groups go, then so many queries of each that is left; or it is asked."""
        size = self.dense.queries_per_group * self.head_dim
        if not goes_on and not any(queries):
            return self.question(count * size)
        return self.removal(before * size, count * size) + self.queries_gone(
            before - count, queries
        )

    def queries_gone(self, groups: int, queries: Sequence[int]) -> float:
        """Every way to take each of these numbers of queries out of each group."""
        inputs = groups * self.dense.queries_per_group * self.head_dim
        return sum(self.tree(inputs, groups, count) for count in queries if count)

    def tree(self, inputs: int, groups: int, count: int) -> float:
        """So many queries of each of so many groups, group after group."""
        gone = count * self.head_dim
        ways = comb(self.dense.queries_per_group, count)
        if groups == 1:
            return ways * self.question(gone)
        return ways * (self.removal(inputs, gone) + self.tree(inputs - gone, groups - 1, count))

    def group_step(self, groups: int, queries: int) -> float:
        """The cheapest of the groups that are left goes."""
        size = queries * self.head_dim
        return groups * self.question(size) + self.removal(groups * size, size)

    def query_step(self, groups: int, queries: int) -> float:
        """The cheapest query of each group goes."""
        size, inputs = self.head_dim, groups * queries * self.head_dim
        removals = (self.removal(inputs - size * number, size) for number in range(groups))
        return groups * queries * self.question(size) + sum(removals)

    def two_paths(self, shapes: Sequence[AttentionShape]) -> float:
        """Queries first, and from everywhere on that path groups; and the other way round."""
        groups, queries = self.dense.num_kv_heads, self.dense.queries_per_group
        fewest_groups = min(shape.num_kv_heads for shape in shapes)
        fewest_queries = min(shape.queries_per_group for shape in shapes)
        all_groups = range(groups, fewest_groups, -1)
        all_queries = range(queries, fewest_queries, -1)
        outer = [self.query_step(groups, q) for q in all_queries]
        outer += [self.group_step(g, queries) for g in all_groups]
        inner = [self.group_step(g, q) for q in (*all_queries, fewest_queries) for g in all_groups]
        inner += [self.query_step(g, q) for g in (*all_groups, fewest_groups) for q in all_queries]
        return sum(outer) + sum(inner)
