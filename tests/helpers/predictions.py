"""The slow twin of drafts in training: every segment predicted from the slot before it.

Shapes: B rows, S slots, N segments to predict, K tokens of a segment, M segments of several tokens,
J tokens after the first of their segments, T taps, D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.smash.hub import SmashModel
from lightstride.smash.model.slots import SlotBatch, slot_tokens


@dataclass(frozen=True)
class Predictions:
    """Teacher-forced predictions of the segments to predict, flattened by token."""

    first_ND: Tensor
    """Vectors that predict first tokens; `base_logits` and `stop` read them."""
    first_tokens_N: Tensor
    first_is_last_N: Tensor
    """Whether the segment ends with its first token."""
    later_JD: Tensor
    """Vectors that predict all other tokens; `micro_logits` and `stop` read them."""
    later_tokens_J: Tensor
    later_is_last_J: Tensor
    later_segment_J: Tensor
    """Index n of the segment that each of them belongs to."""
    later_place_J: Tensor
    """Its place in the segment, from 1."""


def predict(model: SmashModel, batch: SlotBatch) -> Predictions:
    """Teacher-forced predictions for every segment that is to be predicted, in one batch."""
    taps_BSTD = torch.stack(model.read_packed(batch), dim=2)
    rows_N, slots_N = batch.predicts_BS.nonzero(as_tuple=True)
    taps_NTD = taps_BSTD[rows_N, slots_N]
    lengths_N = batch.lengths_BS[rows_N, slots_N + 1]
    tokens_NK = slot_tokens(
        batch.tokens_BL, batch.lengths_BS, (rows_N, slots_N + 1), model.config.max_segment
    )
    (long_M,) = (lengths_N > 1).nonzero(as_tuple=True)
    width = int(lengths_N.max()) if len(lengths_N) else 1
    inputs = torch.cat([taps_NTD[long_M], model.embed(tokens_NK[long_M, : width - 1])], dim=1)
    outputs_MSD, _ = model.micro(inputs, None)
    later_MKD = outputs_MSD[:, taps_NTD.shape[1] :]
    places = torch.arange(1, width, device=lengths_N.device)
    m_J, k_J = (places < lengths_N[long_M][:, None]).nonzero(as_tuple=True)
    segment_J = long_M[m_J]
    return Predictions(
        first_ND=taps_NTD[:, -1],
        first_tokens_N=tokens_NK[:, 0],
        first_is_last_N=lengths_N == 1,
        later_JD=later_MKD[m_J, k_J],
        later_tokens_J=tokens_NK[segment_J, k_J + 1],
        later_is_last_J=k_J + 2 == lengths_N[segment_J],
        later_segment_J=segment_J,
        later_place_J=k_J + 1,
    )
