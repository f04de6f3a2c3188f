"""Gram matrices H = sum x x^T of activations, in fp32, from half the products.

H is symmetric: only the blocks on and above its diagonal are computed (9/16 of the work with
eight column blocks) and mirrored at the end.  Activations in bf16 are multiplied exactly and
added up in fp32: on a CPU by letting oneDNN take its bf16 units (`fp32_precision`), where
the rounding that this allows changes nothing, since the values are bf16 already.

Shapes: T tokens, I inputs of the site, J other features.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

COLUMN_BLOCKS = 8


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


def add_gram(upper_II: Tensor, rows_TI: Tensor, num_blocks: int = COLUMN_BLOCKS) -> None:
    """Add x^T x to the blocks on and above the diagonal, in place; the rest is left alone."""
    values_TI = rows_TI.float()
    width = -(-values_TI.shape[1] // num_blocks)
    with exact_products(rows_TI.dtype):
        for start in range(0, values_TI.shape[1], width):
            rows = slice(start, start + width)
            upper_II[rows, start:].addmm_(values_TI[:, rows].T, values_TI[:, start:])


def add_cross(cross_IJ: Tensor, rows_TI: Tensor, others_TJ: Tensor) -> None:
    """Add x^T t, in place."""
    assert rows_TI.dtype == others_TJ.dtype
    with exact_products(rows_TI.dtype):
        cross_IJ.addmm_(rows_TI.float().T, others_TJ.float())


def mirror(upper_II: Tensor) -> Tensor:
    """The whole symmetric matrix, made in place from its entries on and above the diagonal."""
    upper_II.triu_()
    upper_II += upper_II.triu(1).T
    return upper_II
