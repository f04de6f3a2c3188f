"""Choice of the units to remove: FFN channels one after the other, KV groups, query heads.

Removing the inputs R of y = W x costs 1/2 tr(W_R P[R, R]^-1 W_R^T) with P the inverse of the
(damped) Gram matrix; afterwards the inputs that are left have the inverse Gram matrix
P - P[:, R] P[R, R]^-1 P[R, :] and the weights W - W_R P[R, R]^-1 P[R, :], so costs add up.

Paper: optimal brain surgeon (Hassibi & Stork, 1993), in blocks; Tyr-the-Pruner, arXiv
2503.09657, eq. 4 and 7-10.  We differ: its first-order term is zero at the dense weights and
left out, and attention loses whole KV groups and equal numbers of queries of each kept group.

Shapes: O outputs, I inputs (C channels, L live ones, S of a round; or heads of size d), K kept,
R removed inputs.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightstride.errors import ConfigError
from lightstride.models.shapes import NO_ATTENTION, AttentionKept, AttentionShape

MOST_TREE_GROUPS = 8
"""So many KV groups go one after the other; of more, what has been removed would fill memory."""
PANEL = 128
"""Channels that go between two products over the whole inverse Gram matrix: enough rows for their
full speed."""


def cholesky(gram_II: Tensor) -> Tensor:
    """Lower factor L with L L^T = gram."""
    return cholesky_in_place(gram_II.clone(memory_format=torch.contiguous_format))


def cholesky_in_place(gram_II: Tensor, *, upper: bool = False) -> Tensor:
    """The same, or L^T, in the memory of a contiguous matrix, which is lost."""
    assert gram_II.is_contiguous()
    factor_II = gram_II.mT  # symmetric, so this is the matrix itself as LAPACK stores it
    failed = torch.empty((), dtype=torch.int32, device=gram_II.device)
    torch.linalg.cholesky_ex(factor_II, upper=upper, out=(factor_II, failed))
    if failed:
        raise ConfigError(
            "the calibration tokens do not determine the weights: give more text or more damping "
            "(0.01 is usual)"
        )
    return factor_II


def removal_order(
    weight_OC: Tensor, inverse_gram_CC: Tensor, num_removed: int, chunk: int, panel: int = PANEL
) -> Tensor:
    """All channels, the `num_removed` that go in the order of going, then the rest, shape (C,).

    Each round removes the `chunk` channels that are cheapest alone; `panel` channels go between
    two products that bring the inverse Gram matrix up to date.  What is left stays in the top left
    corner of the work matrices: its last channels take the places of those that went.  An inverse
    in contiguous fp32 is such a matrix, and is lost.
    """
    weight_CO = weight_OC.T.to(torch.float32, copy=True).contiguous()
    inverse_CC = inverse_gram_CC.float().contiguous()
    num_live = len(weight_CO)
    labels_C = torch.arange(num_live, device=weight_OC.device)
    order: list[Tensor] = []
    stop = num_live - num_removed
    while num_live > stop:
        count = min(panel, num_live - stop)
        live = slice(num_live)
        chosen = remove_panel(weight_CO[live], inverse_CC[live, live], count, chunk)
        order.append(labels_C[chosen])
        num_live -= count
        is_left = torch.ones(num_live + count, dtype=torch.bool, device=chosen.device)
        is_left[chosen] = False
        here = (~is_left[:num_live]).nonzero().flatten()
        there = num_live + is_left[num_live:].nonzero().flatten()
        labels_C[here] = labels_C[there]
        weight_CO[here] = weight_CO[there]
        inverse_CC[here, live] = inverse_CC[there, live]
        inverse_CC[:num_live, here] = inverse_CC[:num_live, there]
    return torch.cat([*order, labels_C[:stop]])


def remove_panel(weight_LO: Tensor, inverse_LL: Tensor, count: int, chunk: int) -> Tensor:
    """Remove `count` of the live channels, `chunk` at a time, in place; which, as they went.

    The weights, and the diagonal that costs need, change in every round.  The rest of the inverse
    Gram matrix changes once, at the end: P - sum_t rows_t^T pull_t, one product of `count` rows.
    """
    num_live, num_outputs = weight_LO.shape
    rows_RL, pulls_RL = weight_LO.new_empty(2, count, num_live)
    diagonal_L = inverse_LL.diagonal().clone()
    is_gone_L = torch.zeros_like(diagonal_L, dtype=torch.bool)
    gone: list[Tensor] = []
    for start in range(0, count, chunk):
        costs_L = torch.linalg.vector_norm(weight_LO, dim=1).square_() / diagonal_L
        costs_L.masked_fill_(is_gone_L, torch.inf)
        chosen = costs_L.topk(min(chunk, count - start), largest=False).indices
        new = slice(start, start + len(chosen))
        rows_SL = inverse_LL[chosen].addmm_(rows_RL[:start, chosen].T, pulls_RL[:start], alpha=-1)
        targets = torch.cat([weight_LO[chosen], rows_SL], dim=1)
        pulls_SV = torch.linalg.inv(rows_SL[:, chosen]) @ targets  # far faster than a solve
        pull_SO, pulls_RL[new] = pulls_SV.split([num_outputs, num_live], dim=1)
        rows_RL[new] = rows_SL
        weight_LO.addmm_(rows_SL.T, pull_SO, alpha=-1)
        diagonal_L -= (rows_SL * pulls_RL[new]).sum(0)
        is_gone_L[chosen] = True
        gone.append(chosen)
    inverse_LL.addmm_(rows_RL.T, pulls_RL, alpha=-1)
    return torch.cat(gone)


def head_columns(heads: Sequence[int], head_dim: int) -> Tensor:
    """Inputs that belong to these heads, shape (K,)."""
    return (
        torch.tensor(heads, dtype=torch.long)[:, None] * head_dim + torch.arange(head_dim)
    ).flatten()


def removal_cost(weight_OI: Tensor, inverse_gram_II: Tensor, removed_R: Tensor) -> float:
    """Loss added by removing these inputs."""
    factor_RR = cholesky(inverse_gram_II[removed_R][:, removed_R])
    weight_RO = weight_OI[:, removed_R].T
    return (
        float(torch.linalg.solve_triangular(factor_RR, weight_RO, upper=False).square().sum()) / 2
    )


Head = tuple[int, int]
"""A KV group and the number of a query head inside it."""


@dataclass(frozen=True)
class PartialCut:
    """An attention on its way to fewer heads: weights and inverse Gram of the inputs left."""

    weight_OK: Tensor
    inverse_KK: Tensor
    heads: tuple[Head, ...]
    """Heads left, in order."""
    cost: float = 0.0

    @property
    def groups(self) -> tuple[int, ...]:
        """Groups left, in order."""
        return tuple(sorted({group for group, _ in self.heads}))

    @property
    def kept(self) -> AttentionKept:
        members = [tuple(q for g, q in self.heads if g == group) for group in self.groups]
        return AttentionKept(self.groups, tuple(members))

    def heads_of(self, *groups: int) -> tuple[Head, ...]:
        """Heads left of these groups."""
        return tuple(head for head in self.heads if head[0] in groups)

    def columns(self, heads: Sequence[Head]) -> Tensor:
        """Indices of these heads' inputs among those left, shape (K,)."""
        head_dim = len(self.inverse_KK) // len(self.heads)
        places = [self.heads.index(head) for head in heads]
        return head_columns(places, head_dim).to(self.weight_OK.device)

    def cost_of(self, heads: Sequence[Head]) -> float:
        """Cost of removing these heads now."""
        return removal_cost(self.weight_OK, self.inverse_KK, self.columns(heads))

    def removing(self, heads: Sequence[Head]) -> "PartialCut":
        """The cut after the removal of these heads."""
        if not heads:
            return self
        left = tuple(head for head in self.heads if head not in heads)
        gone_R, rest_K = self.columns(heads), self.columns(left)
        factor_RR = cholesky(self.inverse_KK[gone_R][:, gone_R])
        pulled = torch.cat([self.weight_OK[:, gone_R], self.inverse_KK[rest_K][:, gone_R]]).T
        whitened = torch.linalg.solve_triangular(factor_RR, pulled, upper=False)
        whitened_RO, whitened_RK = whitened.split([len(self.weight_OK), len(rest_K)], dim=1)
        return PartialCut(
            self.weight_OK[:, rest_K] - whitened_RO.T @ whitened_RK,
            self.inverse_KK[rest_K][:, rest_K] - whitened_RK.T @ whitened_RK,
            left,
            self.cost + float(whitened_RO.square().sum()) / 2,
        )

    def removing_cheapest(self, choices: Iterable[Sequence[Head]]) -> "PartialCut":
        """The cut after the removal of the cheapest of these sets of heads."""
        return self.removing(min(choices, key=self.cost_of))

    def removing_cheapest_group(self) -> "PartialCut":
        return self.removing_cheapest(self.heads_of(group) for group in self.groups)

    def removing_cheapest_queries(self) -> "PartialCut":
        """The cut after the removal of one query head of every group, one after the other."""
        cut = self
        for group in self.groups:
            cut = cut.removing_cheapest((head,) for head in self.heads_of(group))
        return cut


def choose_heads(
    weight_OI: Tensor,
    inverse_gram_II: Tensor,
    shapes: Sequence[AttentionShape],
    dense: AttentionShape,
    exhaustive: int,
) -> dict[AttentionShape, AttentionKept]:
    """Heads to keep for each smaller shape: the best cut if there are few, else greedily."""
    none = {NO_ATTENTION: AttentionKept((), ())}
    every = itertools.product(range(dense.num_kv_heads), range(dense.queries_per_group))
    start = PartialCut(weight_OI, inverse_gram_II, tuple(every))
    smaller = [shape for shape in shapes if shape not in (dense, NO_ATTENTION)]
    few = [shape for shape in smaller if num_cuts(shape, dense) <= exhaustive]
    many = [shape for shape in smaller if num_cuts(shape, dense) > exhaustive]
    return none | best_cuts(start, few) | greedy_cuts(start, many)


def num_cuts(shape: AttentionShape, dense: AttentionShape) -> int:
    """The number of ways to cut a dense attention to a shape."""
    ways = math.comb(dense.queries_per_group, shape.queries_per_group)
    return math.comb(dense.num_kv_heads, shape.num_kv_heads) * int(ways**shape.num_kv_heads)


@dataclass(frozen=True)
class GroupsGone:
    """Whole groups that leave a cut."""

    before: PartialCut
    gone: tuple[int, ...]

    @property
    def num_left(self) -> int:
        """Groups that stay."""
        return len(self.before.groups) - len(self.gone)

    @cached_property
    def cut(self) -> PartialCut:
        """The cut after it."""
        return self.before.removing(self.before.heads_of(*self.gone))

    def best(self, num_queries: int) -> tuple[float, AttentionKept]:
        """The cheapest way to leave so many queries in each group, and its cost.

        Where no query goes it is only asked: that takes a part of the operations of a removal.
        """
        heads = [head for head in self.before.heads if head[0] not in self.gone]
        if self.gone and "cut" not in vars(self) and len(heads) == self.num_left * num_queries:
            cost = self.before.cost + self.before.cost_of(self.before.heads_of(*self.gone))
            return cost, replace(self.before, heads=tuple(heads)).kept
        return best_queries(self.cut, self.cut.groups, num_queries)


def best_cuts(
    start: PartialCut, shapes: Sequence[AttentionShape]
) -> dict[AttentionShape, AttentionKept]:
    """The cheapest of all ways to cut to each shape."""
    best: dict[AttentionShape, tuple[float, AttentionKept]] = {}
    counts = {shape.num_kv_heads for shape in shapes}
    fewest_first = sorted(shapes, key=lambda shape: shape.queries_per_group)  # these need the cut
    for removal in group_removals(start, counts):
        for shape in fewest_first:
            if shape.num_kv_heads == removal.num_left:
                candidate = removal.best(shape.queries_per_group)
                if shape not in best or candidate[0] < best[shape][0]:
                    best[shape] = candidate
    return {shape: kept for shape, (_, kept) in best.items()}


def group_removals(start: PartialCut, counts: Collection[int]) -> Iterator[GroupsGone]:
    """Every way to leave so many groups; few groups go one after the other, all sets from one."""
    if len(start.groups) in counts:
        yield GroupsGone(start, ())
    if len(start.groups) <= MOST_TREE_GROUPS:
        yield from removals_below(start, start.groups, counts)
        return
    for num_groups in counts:
        for groups in itertools.combinations(start.groups, len(start.groups) - num_groups):
            if groups:
                yield GroupsGone(start, groups)


def removals_below(
    cut: PartialCut, later: Sequence[int], counts: Collection[int]
) -> Iterator[GroupsGone]:
    """A tree of removals: one group goes, then one of those after it, as far as is asked for."""
    for place, group in enumerate(later):
        removal, rest = GroupsGone(cut, (group,)), later[place + 1 :]
        below = [n for n in counts if removal.num_left - len(rest) <= n < removal.num_left]
        if below:
            yield from removals_below(removal.cut, rest, below)
        if removal.num_left in counts:
            yield removal


def best_queries(
    cut: PartialCut, groups: Sequence[int], num_kept: int
) -> tuple[float, AttentionKept]:
    """The cheapest way to leave so many queries in each of these groups, and its cost.

    A tree: every choice in the first group is worked out once for all choices in the others.
    """
    heads = cut.heads_of(groups[0])
    choices = itertools.combinations(heads, len(heads) - num_kept)
    if len(groups) > 1:
        branches = (best_queries(cut.removing(gone), groups[1:], num_kept) for gone in choices)
        return min(branches, key=lambda branch: branch[0])
    costs = {gone: cut.cost_of(gone) for gone in choices}
    cheapest = min(costs, key=costs.__getitem__)
    left = replace(cut, heads=tuple(head for head in cut.heads if head not in cheapest))
    return cut.cost + costs[cheapest], left.kept


def greedy_cuts(
    start: PartialCut, shapes: Sequence[AttentionShape]
) -> dict[AttentionShape, AttentionKept]:
    """The cheaper of two greedy paths to each shape: queries first, and groups first."""
    if not shapes:
        return {}
    dense = start.kept.shape
    group_steps = dense.num_kv_heads - min(shape.num_kv_heads for shape in shapes)
    query_steps = dense.queries_per_group - min(shape.queries_per_group for shape in shapes)
    best: dict[AttentionShape, PartialCut] = {}

    def keep_cheaper(cut: PartialCut) -> None:
        shape = cut.kept.shape
        if shape not in best or cut.cost < best[shape].cost:
            best[shape] = cut

    for queries_first in steps_from(start, PartialCut.removing_cheapest_queries, query_steps):
        for cut in steps_from(queries_first, PartialCut.removing_cheapest_group, group_steps):
            keep_cheaper(cut)
    for groups_first in steps_from(start, PartialCut.removing_cheapest_group, group_steps):
        for cut in steps_from(groups_first, PartialCut.removing_cheapest_queries, query_steps):
            keep_cheaper(cut)
    return {shape: best[shape].kept for shape in shapes}


def steps_from(
    cut: PartialCut, step: Callable[[PartialCut], PartialCut], num_steps: int
) -> Iterator[PartialCut]:
    """The cut, and the cuts after each of the steps."""
    yield cut
    for _ in range(num_steps):
        cut = step(cut)
        yield cut
