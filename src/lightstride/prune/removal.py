"""Which units of a site go: FFN channels one after the other, KV groups and query heads.

Removing the inputs R of y = W x costs 1/2 tr(W_R P[R, R]^-1 W_R^T) with P the inverse of the
(damped) Gram matrix; afterwards the inputs that are left have the inverse Gram matrix
P - P[:, R] P[R, R]^-1 P[R, :] and the weights W - W_R P[R, R]^-1 P[R, :], so costs add up.

Paper: optimal brain surgeon (Hassibi & Stork, 1993), in blocks; Tyr-the-Pruner, arXiv
2503.09657, eq. 4 and 7-10.  We differ: its first-order term is zero at the dense weights and
left out, and attention loses whole KV groups and equal numbers of queries of each kept group.

Shapes: O outputs, I inputs (C channels, or heads of size d), K kept, R removed inputs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.errors import ConfigError
from lightstride.models.shapes import AttentionKept, AttentionShape, keep_all


def factorize(gram_II: Tensor) -> Tensor:
    """Lower factor L with L L^T = gram, fp64."""
    factor_II: Tensor
    factor_II, failed = torch.linalg.cholesky_ex(gram_II.double())
    if failed:
        raise ConfigError(
            "the calibration tokens do not determine the weights: give more text or more damping "
            "(0.01 is usual)"
        )
    return factor_II


def removal_order(
    weight_OC: Tensor, inverse_gram_CC: Tensor, num_removed: int, chunk: int
) -> Tensor:
    """All channels, the `num_removed` that go in the order of going, then the rest, shape (C,).

    Each round removes the `chunk` channels that are cheapest alone.  What is left stays in the
    top left corner of one work matrix: the channels of a round are first swapped to its end.
    """
    num_outputs, num_live = weight_OC.shape
    table = torch.cat([weight_OC.T.float(), inverse_gram_CC.float()], dim=1)
    labels_C = torch.arange(num_live, device=weight_OC.device)
    order: list[Tensor] = []
    stop = num_live - num_removed
    while num_live > stop:
        count = min(chunk, num_live - stop)
        costs_C = table[:num_live, :num_outputs].square().sum(1)
        costs_C /= table.diagonal(num_outputs)[:num_live]
        chosen = costs_C.topk(count, largest=False).indices
        order.append(labels_C[chosen])
        num_live -= count
        is_chosen = torch.zeros(num_live + count, dtype=torch.bool, device=chosen.device)
        is_chosen[chosen] = True
        inside = is_chosen[:num_live].nonzero().flatten()
        outside = num_live + (~is_chosen[num_live:]).nonzero().flatten()
        here, there = torch.cat([inside, outside]), torch.cat([outside, inside])
        labels_C[here] = labels_C[there]
        table[here] = table[there]
        table[:, num_outputs + here] = table[:, num_outputs + there]
        eliminate(table, num_outputs, num_live, count)
    return torch.cat([*order, labels_C[:stop]])


def eliminate(table: Tensor, num_outputs: int, num_live: int, count: int) -> None:
    """Take the `count` channels after the live ones out of `[W^T | P]`, in place."""
    end = num_outputs + num_live
    gone = slice(num_live, num_live + count)
    block_RR = table[gone, end : end + count]
    pull = torch.linalg.solve(block_RR, table[gone, :end])
    table[:num_live, :end].addmm_(table[:num_live, end : end + count], pull, alpha=-1)


def head_columns(heads: Sequence[int], head_dim: int) -> Tensor:
    """Inputs that belong to these heads, shape (K,)."""
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()


def removal_cost(weight_OI: Tensor, inverse_gram_II: Tensor, removed_R: Tensor) -> float:
    """Loss added by removing these inputs."""
    weight_OR = weight_OI[:, removed_R]
    factor_RR = factorize(inverse_gram_II[removed_R][:, removed_R])
    whitened = torch.linalg.solve_triangular(factor_RR, weight_OR.T, upper=False)
    return float(whitened.square().sum()) / 2


def choose_heads(
    weight_OI: Tensor,
    inverse_gram_II: Tensor,
    shapes: Sequence[AttentionShape],
    dense: AttentionShape,
    exhaustive: int,
) -> dict[AttentionShape, AttentionKept]:
    """Heads to keep for each smaller shape: the best of all cuts if there are few, else greedily."""
    smaller = [shape for shape in shapes if shape != dense]
    few = [shape for shape in smaller if num_cuts(shape, dense) <= exhaustive]
    many = [shape for shape in smaller if num_cuts(shape, dense) > exhaustive]
    best = {shape: best_cut(weight_OI, inverse_gram_II, shape, dense) for shape in few}
    return best | greedy_cuts(weight_OI, inverse_gram_II, many, dense)


def num_cuts(shape: AttentionShape, dense: AttentionShape) -> int:
    """How many ways there are to cut a dense attention to a shape."""
    ways = math.comb(dense.queries_per_group, shape.queries_per_group)
    return math.comb(dense.num_kv_heads, shape.num_kv_heads) * int(ways**shape.num_kv_heads)


def all_cuts(shape: AttentionShape, dense: AttentionShape) -> Iterator[AttentionKept]:
    """Every way to cut a dense attention to a shape."""
    some = list(itertools.combinations(range(dense.queries_per_group), shape.queries_per_group))
    for groups in itertools.combinations(range(dense.num_kv_heads), shape.num_kv_heads):
        for queries in itertools.product(some, repeat=shape.num_kv_heads):
            yield AttentionKept(groups, queries)


def best_cut(
    weight_OI: Tensor, inverse_gram_II: Tensor, shape: AttentionShape, dense: AttentionShape
) -> AttentionKept:
    """The cheapest of all ways to cut to a shape."""
    head_dim = weight_OI.shape[1] // dense.num_heads

    def cost(kept: AttentionKept) -> float:
        stays = set(kept.heads(dense.queries_per_group))
        gone = [head for head in range(dense.num_heads) if head not in stays]
        removed_R = head_columns(gone, head_dim).to(weight_OI.device)
        return removal_cost(weight_OI, inverse_gram_II, removed_R)

    return min(all_cuts(shape, dense), key=cost)


@dataclass(frozen=True)
class Cut:
    """An attention on its way to fewer heads: weights and inverse Gram of the inputs left."""

    weight_OK: Tensor
    inverse_KK: Tensor
    queries: dict[int, tuple[int, ...]]
    """Query heads left, of every group left."""
    head_dim: int
    cost: float = 0.0

    @property
    def kept(self) -> AttentionKept:
        return AttentionKept(tuple(self.queries), tuple(self.queries.values()))

    def columns(self, group: int, queries: Sequence[int]) -> Tensor:
        """Where these heads of a group are among the inputs left."""
        heads = [(g, q) for g, members in self.queries.items() for q in members]
        places = [heads.index((group, query)) for query in queries]
        return head_columns(places, self.head_dim).to(self.weight_OK.device)

    def cost_of(self, group: int, queries: Sequence[int]) -> float:
        """Cost of removing these heads of a group now."""
        return removal_cost(self.weight_OK, self.inverse_KK, self.columns(group, queries))

    def without(self, group: int, queries: Sequence[int]) -> "Cut":
        """The cut after removing these heads of a group."""
        columns = self.columns(group, queries)
        rest = torch.ones(len(self.inverse_KK), dtype=torch.bool, device=columns.device)
        rest[columns] = False
        factor_RR = factorize(self.inverse_KK[columns][:, columns])
        pull_RK = torch.cholesky_solve(self.inverse_KK[columns][:, rest], factor_RR)
        left = tuple(query for query in self.queries[group] if query not in queries)
        members = {**self.queries, group: left}
        return Cut(
            self.weight_OK[:, rest] - self.weight_OK[:, columns] @ pull_RK,
            self.inverse_KK[rest][:, rest] - self.inverse_KK[rest][:, columns] @ pull_RK,
            {g: members[g] for g in members if members[g]},
            self.head_dim,
            self.cost + self.cost_of(group, queries),
        )

    def without_cheapest_group(self) -> "Cut":
        """The cut after removing one whole group."""
        group = min(self.queries, key=lambda group: self.cost_of(group, self.queries[group]))
        return self.without(group, self.queries[group])

    def without_cheapest_queries(self) -> "Cut":
        """The cut after removing one query head of every group, one after the other."""
        cut = self
        for group, queries in self.queries.items():
            cheapest = min(queries, key=lambda query: cut.cost_of(group, (query,)))
            cut = cut.without(group, (cheapest,))
        return cut


def greedy_cuts(
    weight_OI: Tensor,
    inverse_gram_II: Tensor,
    shapes: Sequence[AttentionShape],
    dense: AttentionShape,
) -> dict[AttentionShape, AttentionKept]:
    """The cheaper of two greedy paths to each shape: queries first, and groups first."""
    if not shapes:
        return {}
    every = keep_all(dense)
    assert isinstance(every, AttentionKept)
    queries = dict(zip(every.groups, every.queries, strict=True))
    start = Cut(weight_OI, inverse_gram_II, queries, weight_OI.shape[1] // dense.num_heads)
    group_steps = dense.num_kv_heads - min(shape.num_kv_heads for shape in shapes)
    query_steps = dense.queries_per_group - min(shape.queries_per_group for shape in shapes)
    best: dict[AttentionShape, Cut] = {}

    def note(cut: Cut) -> None:
        shape = cut.kept.shape
        if shape not in best or cut.cost < best[shape].cost:
            best[shape] = cut

    for queries_first in path(start, Cut.without_cheapest_queries, query_steps):
        for cut in path(queries_first, Cut.without_cheapest_group, group_steps):
            note(cut)
    for groups_first in path(start, Cut.without_cheapest_group, group_steps):
        for cut in path(groups_first, Cut.without_cheapest_queries, query_steps):
            note(cut)
    return {shape: best[shape].kept for shape in shapes}


def path(cut: Cut, step: Callable[[Cut], Cut], num_steps: int) -> Iterator[Cut]:
    """The cut, and what each of the steps makes of it."""
    yield cut
    for _ in range(num_steps):
        cut = step(cut)
        yield cut
