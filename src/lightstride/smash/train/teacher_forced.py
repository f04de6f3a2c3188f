"""Drafts from every place of an answer at once, teacher-forced.

A draft starts after the slot that holds token x_p: the base's own features of that slot give the
vector v_1 that predicts x_{p+1}; the micro decoder, fed x_{p+1}, x_{p+2}, .., gives v_2, v_3, ..
that predict the tokens after.  `lossless` may start a draft at any token, `trust` at any slot, so
all of them are learned from, however the answer is cut.

Shapes: B rows, L tokens, S slots, N drafts, K tokens of a draft, T taps, D hidden size, J pairs of
a draft and a place in it, from the second on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.confidence import log_odds
from lightstride.smash.model.slots import SlotBatch

SLICE = 256
"""Vectors whose logits are made at once where only the likeliest token matters."""


@dataclass(frozen=True)
class Starts:
    """Where drafts start."""

    rows_N: Tensor
    slots_N: Tensor
    ends_N: Tensor
    """Index, in its row, of the last token of the slot that the draft follows."""
    valid_NK: Tensor
    """Whether the draft's k-th token is there: in the same document."""


@dataclass(frozen=True)
class Drafts:
    """Predictions at the starts."""

    starts: Starts
    vectors_NKD: Tensor
    """The vector that predicts each token of a draft, the first of them the base's own."""

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Draft and place (from 1) of each token after the first, in the order of the tokens."""
        starts = self.starts
        draft_J, place_J = starts.valid_NK[:, 1:].nonzero(as_tuple=True)
        place_J = place_J + 1
        width = int(starts.ends_N.max()) + starts.valid_NK.shape[1] + 1 if len(draft_J) else 1
        token_J = starts.rows_N[draft_J] * width + starts.ends_N[draft_J] + place_J
        order_J = token_J.argsort(stable=True)
        return draft_J[order_J], place_J[order_J]


def find_starts(batch: SlotBatch, documents_BL: Tensor, num_tokens: int) -> Starts:
    """All places of a batch at which a draft of up to `num_tokens` starts."""
    rows_N, slots_N = batch.predicts_BS.nonzero(as_tuple=True)
    ends_N = (batch.lengths_BS.cumsum(-1) - 1)[rows_N, slots_N]
    width = documents_BL.shape[1]
    places_NK = ends_N[:, None] + 1 + torch.arange(num_tokens, device=ends_N.device)
    theirs_NK = documents_BL[rows_N[:, None], places_NK.clamp(max=width - 1)]
    valid_NK = (places_NK < width) & (theirs_NK == documents_BL[rows_N, ends_N][:, None])
    return Starts(rows_N, slots_N, ends_N, valid_NK)


def tokens_at(values_BL: Tensor, starts: Starts) -> Tensor:
    """Values at each token of a draft, of a tensor of the shape of the tokens, (N, K)."""
    num_tokens = starts.valid_NK.shape[1]
    places_NK = starts.ends_N[:, None] + 1 + torch.arange(num_tokens, device=values_BL.device)
    return values_BL[starts.rows_N[:, None], places_NK.clamp(max=values_BL.shape[1] - 1)]


def predict_drafts(
    model: SmashBody, taps: Sequence[Tensor], starts: Starts, tokens_NK: Tensor
) -> Drafts:
    """The vectors of all drafts; `taps` are hidden states (B, S, D), `tokens` what is fed."""
    taps_NTD = torch.stack([hidden[starts.rows_N, starts.slots_N] for hidden in taps], dim=1)
    first_N1D = taps_NTD[:, -1:]
    num_later = tokens_NK.shape[1] - 1
    if not num_later:
        return Drafts(starts, first_N1D)
    inputs = torch.cat([taps_NTD, model.embed(tokens_NK[:, :num_later])], dim=1)
    later_NJD, _ = model.micro(inputs, None, num_later)
    return Drafts(starts, torch.cat([first_N1D, later_NJD], dim=1))


@torch.no_grad()
def likeliest_later(model: SmashBody, drafts: Drafts) -> tuple[Tensor, Tensor]:
    """The likeliest token of the micro decoder at each later place, and its log odds, (N, K - 1).

    Vectors are laid out flat first: torch multiplies a batch of strided matrices one by one.
    """
    later_NJD = drafts.vectors_NKD[:, 1:]
    shape, device = later_NJD.shape[:2], later_NJD.device
    ids, odds = [torch.zeros(0, dtype=torch.long, device=device)], [torch.zeros(0, device=device)]
    for piece in later_NJD.reshape(-1, later_NJD.shape[-1]).split(SLICE):
        logits = model.micro_logits(piece)
        ids.append(logits.argmax(-1))
        odds.append(log_odds(logits))
    return model.vocabulary_ids(torch.cat(ids).view(shape)), torch.cat(odds).view(shape)


def stop_logits_before(model: SmashBody, drafts: Drafts) -> Tensor:
    """Logits of "the draft should end" before each later place, shape (N, K - 1)."""
    vectors_NJD = drafts.vectors_NKD[:, :-1]
    logits_M = model.stop_logits(vectors_NJD.reshape(-1, vectors_NJD.shape[-1]))
    return logits_M.float().view(vectors_NJD.shape[:2])
