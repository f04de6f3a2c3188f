"""Confidence of a draft, from the features of its tokens.

With z_k the logit of "stop after token k", o_k the log odds of the micro decoder's likeliest token
k + 1, s_k the vote of lookup for that token (`lookup.py`), and (a_k, b_k, c_k, d_k) the
calibration of place k,

    P(the draft's next k tokens are all right)
        = prod_{i <= k} sigmoid(c_i o_i + d_i s_i - a_i z_i - b_i).

Without a calibration a_k = 1, b_k = c_k = d_k = 0, as published: the stop head alone.

Shapes: N drafts, J places, F features (z, o, s), M micro vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Calibration = Sequence[Sequence[float]]
"""Scale and offset of the stop head's logit, then the weights of the others, at each place."""
MAX_LOG_ODDS = 15.0
"""Log odds are cut off here: beyond, they are noise of the number type."""


def log_odds(logits_NM: Tensor) -> Tensor:
    """log p / (1 - p) of the likeliest token, shape (N,)."""
    log_p_N = logits_NM.float().log_softmax(-1).amax(-1)
    odds_N = log_p_N - torch.log(-torch.expm1(log_p_N))
    return odds_N.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def conditional(features_NJF: Tensor, calibration: Calibration | None) -> Tensor:
    """P(next token right, given that all before are), for each place, shape (N, J)."""
    if calibration is None:
        return torch.sigmoid(-features_NJF[..., 0])
    num_places, num_features = features_NJF.shape[1:]
    rows = [[*row, *[0.0] * num_features] for row in calibration[:num_places]]
    table = torch.tensor(rows, dtype=features_NJF.dtype, device=features_NJF.device)
    weights_JF = torch.cat([-table[:, :1], table[:, 2 : num_features + 1]], dim=1)
    return torch.sigmoid((weights_JF * features_NJF).sum(-1) - table[:, 1])


def cumulative(features_NJF: Tensor, calibration: Calibration | None) -> Tensor:
    """P(this and all tokens before are right), for each place, shape (N, J)."""
    return conditional(features_NJF, calibration).cumprod(-1)
