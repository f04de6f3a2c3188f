"""Cut one site to every requested shape in one pass, and refit its output weights.

For y = W x with Gram matrix H = sum x x^T over calibration tokens, new weights V cost
1/2 tr((W - V) H (W - V)^T).  We minimize that plus the ridge lambda/2 |W - V|^2, lambda =
damping * mean(diag H): V is drawn towards W where it stays.  With H + lambda I for H, keeping
the inputs K alone, the best V is W H[:, K] H[K, K]^-1.

Paper: Tyr-the-Pruner, arXiv 2503.09657, section 3.2.  We differ: the widths of an FFN are nested
in one removal order and share one factorization.  With the inputs in the order "removed last
comes first", L L^T = H + lambda I and Y = L^T W^T, the first k inputs alone have
V^T = L[:k, :k]^-T Y[:k], and that costs 1/2 |Y[k:]|^2, ridge included.

Shapes: O outputs, I inputs (C channels, or heads of size d), K kept inputs.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.errors import ConfigError
from lightstride.models.shapes import AttentionShape, FFNKept, FFNShape, Kept, Shape, keep_all
from lightstride.prune.cut.choose_units import (
    cholesky_in_place,
    choose_heads,
    head_columns,
    removal_order,
)

EXHAUSTIVE = 128
"""So many ways to cut an attention are all tried."""
ROWS_AT_ONCE = 256
"""Rows of a Gram matrix that are copied together."""
ENOUGH_DAMPING = 0.01
"""From here on fp32 solves find what fp64 finds: the same units, losses within 0.003%."""


@dataclass(frozen=True)
class CutSite:
    """A site cut to one shape."""

    kept: Kept
    output_OK: Tensor
    """Refitted output weights, fp32 or as stored; columns in the order of the kept units."""
    loss: float
    """1/2 tr((W - V) H (W - V)^T) over all calibration tokens, the ridge not counted."""
    bias_O: Tensor | None = None
    """New bias of the output layer; None leaves it as it was."""


def kept_inputs(kept: Kept, dense: Shape, head_dim: int) -> Tensor:
    """Inputs of the output weights that belong to the kept units, ascending, shape (K,)."""
    if isinstance(kept, FFNKept):
        return torch.tensor(kept.channels, dtype=torch.long)
    assert isinstance(dense, AttentionShape)
    return head_columns(kept.heads(dense.queries_per_group), head_dim)


def add_ridge(
    gram_II: Tensor,
    damping: float,
    order_I: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, float]:
    """The Gram matrix with the ridge on its diagonal, and the ridge; inputs in an order."""
    mean = float(gram_II.diagonal().double().mean())
    ridge = damping * mean if mean > 0 else 1.0
    damped_II = torch.empty_like(gram_II, dtype=dtype, memory_format=torch.contiguous_format)
    for some in torch.arange(len(gram_II), device=gram_II.device).split(ROWS_AT_ONCE):
        rows_RI = gram_II[some] if order_I is None else gram_II[order_I[some]][:, order_I]
        damped_II[some] = rows_RI.to(dtype)
    damped_II.diagonal().add_(ridge)
    return damped_II, ridge


def damped_factor(
    gram_II: Tensor, damping: float, order_I: Tensor | None = None, *, upper: bool = False
) -> tuple[Tensor, float]:
    """Factor L, or L^T, of the Gram matrix with the ridge, and the ridge; inputs in an order.

    In fp32 where the ridge is large enough for it: fp64 takes one and a half times as long on a
    CPU, up to 64 times on a GPU, and twice the memory.
    """
    if damping >= ENOUGH_DAMPING:
        damped_II, ridge = add_ridge(gram_II, damping, order_I, torch.float32)
        with suppress(ConfigError):
            return cholesky_in_place(damped_II, upper=upper), ridge
    damped_II, ridge = add_ridge(gram_II, damping, order_I)
    return cholesky_in_place(damped_II, upper=upper), ridge


def damped_inverse(gram_II: Tensor, damping: float) -> Tensor:
    """Inverse of the Gram matrix with the ridge, made in one matrix's memory."""
    factor_II, _ = damped_factor(gram_II, damping)
    inverse_II: Tensor = torch.cholesky_inverse(factor_II, out=factor_II)
    return inverse_II.mT  # symmetric, and contiguous so


def refit(weight_OI: Tensor, gram_II: Tensor, kept_K: Tensor) -> Tensor:
    """Best weights on the kept inputs alone, in the Gram matrix's type, shape (O, K)."""
    rows_KI = gram_II[kept_K]
    target_KO = rows_KI @ weight_OI.to(gram_II.dtype).T
    return torch.cholesky_solve(target_KO, cholesky_in_place(rows_KI[:, kept_K].contiguous())).T


def weights_for_targets(
    weight_OI: Tensor, gram_II: Tensor, cross_IO: Tensor, *, damping: float
) -> Tensor:
    """Dense weights that answer other targets t best, with cross = sum x t^T, shape (O, I).

    Cut in the place of `weight_OI` with the same damping, they are fitted to t all along.
    """
    factor_II, ridge = damped_factor(gram_II, damping, upper=True)  # two solves need no copy of it
    fitted_IO: Tensor = cross_IO.to(factor_II.dtype, copy=True).add_(weight_OI.T, alpha=ridge)
    fitted_IO = torch.linalg.solve_triangular(factor_II.mT, fitted_IO, upper=False)
    fitted_IO = torch.linalg.solve_triangular(factor_II, fitted_IO, upper=True)
    return fitted_IO.T.float()


def solve_upper(factor_KK: Tensor, values_KO: Tensor, block: int = 512) -> Tensor:
    """X of U X = Y for an upper triangle U, block by block from below, shape (K, O).

    `torch.linalg.solve_triangular` would copy U where it is a part of a larger matrix.
    """
    found_KO = values_KO.clone()
    for start in reversed(range(0, len(found_KO), block)):
        own, below = slice(start, start + block), slice(start + block, None)
        found_KO[own].addmm_(factor_KK[own, below], found_KO[below], alpha=-1)
        found_KO[own] = torch.linalg.solve_triangular(
            factor_KK[own, own], found_KO[own], upper=True
        )
    return found_KO


def prune_site(
    weight_OI: Tensor,
    gram_II: Tensor,
    shapes: Sequence[Shape],
    dense: Shape,
    *,
    damping: float = 0.01,
    chunk: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[CutSite]:
    """One level for each shape, in the order given; an FFN's refitted weights in this type."""
    if isinstance(dense, FFNShape):
        ffn_shapes = [shape for shape in shapes if isinstance(shape, FFNShape)]
        assert len(ffn_shapes) == len(shapes)
        return prune_ffn(weight_OI, gram_II, ffn_shapes, damping=damping, chunk=chunk, dtype=dtype)
    attention_shapes = [shape for shape in shapes if isinstance(shape, AttentionShape)]
    assert len(attention_shapes) == len(shapes)
    return prune_attention(weight_OI, gram_II, attention_shapes, dense, damping=damping)


def prune_ffn(
    weight_OC: Tensor,
    gram_CC: Tensor,
    shapes: Sequence[FFNShape],
    *,
    damping: float = 0.01,
    chunk: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[CutSite]:
    """One cut for each width, in the order given; narrower ones keep some of wider ones' units."""
    num_channels = weight_OC.shape[1]
    widths = [shape.num_channels for shape in shapes]
    assert all(0 < width <= num_channels for width in widths)
    cuts = NestedCuts(weight_OC, gram_CC, num_channels - min(widths), damping, chunk)
    # The widest ones take most memory to solve: they come while few levels are kept.
    levels = {width: cuts.level(width, dtype) for width in sorted(set(widths), reverse=True)}
    return [levels[width] for width in widths]


class NestedCuts:
    """An FFN's channels in their order of removal, and one factor for cuts to all widths."""

    def __init__(
        self, weight_OC: Tensor, gram_CC: Tensor, num_removed: int, damping: float, chunk: int
    ) -> None:
        self.weight_OC = weight_OC
        self.order_C = removal_order(
            weight_OC * (gram_CC.diagonal() > 0),
            damped_inverse(gram_CC, damping),
            num_removed,
            chunk,
        ).flip(0)
        self.factor_CC, self.ridge = damped_factor(gram_CC, damping, self.order_C, upper=True)
        self.rotated_CO = self.factor_CC @ weight_OC.T[self.order_C].to(self.factor_CC.dtype)

    def fit(self, width: int) -> tuple[Tensor, float]:
        """Refitted weights (K, O) of the channels that go last, and their loss."""
        fitted_KO = solve_upper(self.factor_CC[:width, :width], self.rotated_CO[:width])
        change = 0.0
        for start in range(0, len(self.order_C), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            kept_RO = fitted_KO[some]
            change_RO = self.weight_OC[:, self.order_C[some]].T.to(fitted_KO.dtype)
            change_RO[: len(kept_RO)] -= kept_RO
            change += float(change_RO.square_().sum())
        loss = (self.rotated_CO[width:].square().sum() - self.ridge * change) / 2
        return fitted_KO, max(float(loss), 0.0)

    def loss(self, width: int) -> float:
        """Loss at a width."""
        return 0.0 if width == len(self.order_C) else self.fit(width)[1]

    def level(self, width: int, dtype: torch.dtype = torch.float32) -> CutSite:
        """The cut to a width, with weights of a type."""
        if width == len(self.order_C):
            return dense_level(self.weight_OC, FFNShape(width))
        fitted_KO, loss = self.fit(width)
        channels_K, rank_K = self.order_C[:width].sort()
        output_OK = fitted_KO[rank_K].T.float().to(dtype).contiguous()
        return CutSite(FFNKept(tuple(channels_K.tolist())), output_OK, loss)


def prune_attention(
    weight_OI: Tensor,
    gram_II: Tensor,
    shapes: Sequence[AttentionShape],
    dense: AttentionShape,
    *,
    damping: float = 0.01,
    exhaustive: int = EXHAUSTIVE,
) -> list[CutSite]:
    """One level for each shape, in the order given.

    A shape with at most `exhaustive` possible cuts gets the best of them all; the others get the
    better of two greedy ones.
    """
    inverse_II = damped_inverse(gram_II, damping)
    dtype = inverse_II.dtype
    damped_II, _ = add_ridge(gram_II, damping, dtype=dtype)
    weight, gram = weight_OI.to(dtype), gram_II.to(dtype)
    kept = choose_heads(weight, inverse_II, shapes, dense, exhaustive)

    def level(shape: AttentionShape) -> CutSite:
        if shape == dense:
            return dense_level(weight_OI, shape)
        columns_K = kept_inputs(kept[shape], dense, weight.shape[1] // dense.num_heads)
        columns_K = columns_K.to(weight.device)
        fitted_OK = refit(weight, damped_II, columns_K)
        change_OI = weight.index_add(1, columns_K, fitted_OK, alpha=-1)
        loss = max(float((change_OI @ gram * change_OI).sum()) / 2, 0.0)
        return CutSite(kept[shape], fitted_OK.float().contiguous(), loss)

    return [level(shape) for shape in shapes]


def dense_level(weight_OI: Tensor, dense: Shape) -> CutSite:
    """A site that loses nothing."""
    return CutSite(keep_all(dense), weight_OI.float(), 0.0)
