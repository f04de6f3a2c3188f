"""From the stop head's logits to a confidence.

With z_k the logit of "stop after token k" and (a_k, b_k) the calibration of place k,

    P(the next k tokens of the draft are all right) = prod_{i <= k} sigmoid(-(a_i z_i + b_i)).

Without a calibration a_k = 1, b_k = 0.

Shapes: N drafts, J places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Calibration = Sequence[Sequence[float]]
"""Scale and offset of the logit at each place."""


def conditional(logits_NJ: Tensor, calibration: Calibration | None) -> Tensor:
    """P(next token right, given that all before are), for each place, shape (N, J)."""
    if calibration is None:
        return torch.sigmoid(-logits_NJ)
    table_J2 = torch.tensor(calibration, dtype=logits_NJ.dtype, device=logits_NJ.device)
    table_J2 = table_J2[: logits_NJ.shape[1]]
    return torch.sigmoid(-(table_J2[:, 0] * logits_NJ + table_J2[:, 1]))


def cumulative(logits_NJ: Tensor, calibration: Calibration | None) -> Tensor:
    """P(this and all tokens before are right), for each place, shape (N, J)."""
    return conditional(logits_NJ, calibration).cumprod(-1)
