"""Norms over all heads of a projection (Olmo2's of queries and keys), when heads are cut.

Such a norm answers w_i q_i / rms(q), its root mean square taken over the N elements of all heads.
With the elements K kept alone, rms(q_K) takes its place, and the heads that stay would grow by
rms(q) / rms(q_K).  The usual size of that is made good in the weights:

    w_K <- c w_K,   c^2 = mean over K of |W_i|^2 / mean over all i of |W_i|^2

with W_i the projection's row i: exact if all heads are equally large at every token.  The masked
twin has zero rows for what is cut and sqrt(N/K) times the others, so that its root mean square is
rms(q_K), and its norm's weight is w c sqrt(K/N).  Either way the inputs of the site's output
weights change, which a stream has to see.

Shapes: N elements of all heads, K kept ones, D hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightstride.models.families.adapter import HEAD_NORMS, SiteWeights


def cut_norms(dense: SiteWeights, rows: Mapping[str, Tensor]) -> SiteWeights:
    """Weights (K,) of the norms over heads, by name, when `rows` of their projections stay."""
    return {
        norm: dense[norm][_on(rows[name], dense[norm])] * _growth(dense, name, rows[name])
        for norm, name in HEAD_NORMS.items()
        if norm in dense and len(rows[name])
    }


def masked_norms(dense: SiteWeights, rows: Mapping[str, Tensor]) -> SiteWeights:
    """Projections with zero rows for what is cut, and the norms (N,) that go with them: the twin's.

    Nothing where there are no such norms, or no rows are cut.
    """
    masked: SiteWeights = {}
    for norm, name in HEAD_NORMS.items():
        if norm not in dense or len(rows[name]) in (0, len(dense[norm])):
            continue
        root = (len(rows[name]) / len(dense[norm])) ** 0.5
        for part in (name, f"{name}_bias"):
            if part in dense:
                rows_K = _on(rows[name], dense[part])
                masked[part] = torch.zeros_like(dense[part])
                masked[part][rows_K] = dense[part][rows_K] / root
        masked[norm] = dense[norm] * (_growth(dense, name, rows[name]) * root)
    return masked


def _growth(dense: SiteWeights, name: str, rows_K: Tensor) -> float:
    """c: the root mean square of the kept rows over that of all."""
    squares_N = dense[name].float().square().sum(1)
    if f"{name}_bias" in dense:
        squares_N = squares_N + dense[f"{name}_bias"].float().square()
    return float((squares_N[_on(rows_K, squares_N)].mean() / squares_N.mean()).sqrt())


def _on(rows_K: Tensor, tensor: Tensor) -> Tensor:
    return rows_K.to(tensor.device)
