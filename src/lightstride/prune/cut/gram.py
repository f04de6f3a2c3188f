"""Gram matrices H = sum x x^T of activations, in fp32, from half the products.

H is symmetric: only the blocks on and above its diagonal are computed and kept, one after the
other (9/16 of work and memory with eight of them); the whole matrix is made at the end.
Activations in bf16 are multiplied exactly and added up in fp32: on a CPU by letting oneDNN take its
bf16 units (`fp32_precision`), where the rounding that this allows changes nothing, since the values
are bf16 already.

Shapes: T tokens, I inputs of the site, J other features, R rows of a block, P entries that are
kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

COLUMN_BLOCKS = 8


def block_starts(width: int) -> range:
    """Where the blocks of rows begin; all but the last are equally many rows."""
    return range(0, width, -(-width // COLUMN_BLOCKS))


def packed_size(width: int) -> int:
    """Entries that are kept of a Gram matrix of so many inputs."""
    starts = block_starts(width)
    return sum((min(start + starts.step, width) - start) * (width - start) for start in starts)


def upper_blocks(packed_P: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each block, and a view of its entries on and right of the diagonal's block."""
    starts, offset = block_starts(width), 0
    for start in starts:
        rows = slice(start, min(start + starts.step, width))
        shape = (rows.stop - start, width - start)
        size = shape[0] * shape[1]
        yield rows, packed_P[..., offset : offset + size].unflatten(-1, shape)
        offset += size


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Inside, fp32 products of values that came from `dtype` are exact, and as fast as can be."""
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    settings = (mkldnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    mkldnn.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def add_gram(packed_P: Tensor, rows_TI: Tensor) -> None:
    """Add x^T x to the blocks on and above the diagonal, in place."""
    values_TI = rows_TI.float()
    with exact_products(rows_TI.dtype):
        for rows, block_RJ in upper_blocks(packed_P, values_TI.shape[1]):
            block_RJ.addmm_(values_TI[:, rows].T, values_TI[:, rows.start :])


def add_cross(cross_IJ: Tensor, rows_TI: Tensor, others_TJ: Tensor) -> None:
    """Add x^T t, in place."""
    assert rows_TI.dtype == others_TJ.dtype
    with exact_products(rows_TI.dtype):
        cross_IJ.addmm_(rows_TI.float().T, others_TJ.float())


def unpacked(packed_P: Tensor, width: int) -> Tensor:
    """The whole symmetric matrix, from its entries on and above the diagonal, (I, I).

    Of many, one after the other in the first dimensions, all.
    """
    gram_II = packed_P.new_empty(*packed_P.shape[:-1], width, width)
    for rows, block_RJ in upper_blocks(packed_P, width):
        own_RR, right_RJ = block_RJ.split([rows.stop - rows.start, width - rows.stop], dim=-1)
        gram_II[..., rows, rows] = own_RR.triu() + own_RR.triu(1).mT
        gram_II[..., rows, rows.stop :] = right_RJ
        gram_II[..., rows.stop :, rows] = right_RJ.mT
    return gram_II
