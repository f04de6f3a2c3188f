"""How sure a draft is: from what the stop head and the micro decoder say to a confidence.

With z_k the logit of "stop after token k", o_k the log odds of the micro decoder's likeliest token
k + 1, and (a_k, b_k, c_k) the calibration of place k,

    P(the draft's next k tokens are all right) = prod_{i <= k} sigmoid(c_i o_i - a_i z_i - b_i).

Without a calibration a_k = 1, b_k = c_k = 0, as published: the stop head alone.

Shapes: N drafts, J places, M micro vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Calibration = Sequence[Sequence[float]]
"""Scale and offset of the stop head's logit, and weight of the log odds, at each place."""
SUREST = 15.0
"""Log odds are cut off here: beyond, they are noise of the number type."""


def log_odds(logits_NM: Tensor) -> Tensor:
    """log p / (1 - p) of the likeliest token, shape (N,)."""
    log_p_N = logits_NM.float().log_softmax(-1).amax(-1)
    odds_N = log_p_N - torch.log(-torch.expm1(log_p_N))
    return odds_N.clamp(-SUREST, SUREST)


def conditional(logits_NJ: Tensor, odds_NJ: Tensor, calibration: Calibration | None) -> Tensor:
    """P(next token right, given that all before are), for each place, shape (N, J)."""
    if calibration is None:
        return torch.sigmoid(-logits_NJ)
    rows = [[*row, 0.0][:3] for row in calibration]  # without a third: of the stop head alone
    table_J3 = torch.tensor(rows, dtype=logits_NJ.dtype, device=logits_NJ.device)
    scale_J, offset_J, weight_J = table_J3[: logits_NJ.shape[1]].T
    return torch.sigmoid(weight_J * odds_NJ - scale_J * logits_NJ - offset_J)


def cumulative(logits_NJ: Tensor, odds_NJ: Tensor, calibration: Calibration | None) -> Tensor:
    """P(this and all tokens before are right), for each place, shape (N, J)."""
    return conditional(logits_NJ, odds_NJ, calibration).cumprod(-1)
