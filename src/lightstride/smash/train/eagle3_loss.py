"""The loss of an EAGLE-3 head: chains of drafts from every place at once, on its own states.

Paper: EAGLE-3 (arXiv 2503.01840), "training-time test".  A chain starts at every place t of an
answer.  Its first step reads g_t and the token x_{t+1}; step j > 0 reads the state that step j - 1
left and the token x_{t+1+j} of the text, and predicts x_{t+2+j}.  Step j sees the first-step keys
of the places up to t, as a decoder's cache would hold them, and the keys of its own chain:

    places   0  1  2 | chain of place 2
    step 0   *  *  *
    step 1   *  *  *   *            keys of steps 1..j stand at places t + 1 .. t + j
    step 2   *  *  *   *  *

The target of step j is the base's distribution over the draft vocabulary at place t + 1 + j, as a
KL divergence.  We differ: weights of steps fall geometrically, and steps whose token the head
cannot propose count nothing.

Shapes: B rows, L places, D hidden size, H query heads, G KV heads, d head size, J steps.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightstride.smash.model.eagle3 import Eagle3Head


class ChainAttention:
    """Attention of the chains of all places, a step a call.

    `documents_BL` numbers each place's document; places see their own document alone, and of it
    the latest `window` places where there is one.
    """

    def __init__(self, documents_BL: Tensor, window: int | None = None) -> None:
        places_L = torch.arange(documents_BL.shape[1], device=documents_BL.device)
        self.distance_LL = places_L[:, None] - places_L
        self.same_BLL = documents_BL[:, :, None] == documents_BL[:, None]
        self.window = window
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor) -> Tensor:
        """What the chains' next step sees, (B, H, L, d)."""
        step, groups = len(self.keys), key_BGLd.shape[1]
        self.keys.append(key_BGLd)
        self.values.append(value_BGLd)
        query = query_BHLd.unflatten(1, (groups, -1)) * query_BHLd.shape[-1] ** -0.5
        sees_LL = self.distance_LL >= 0
        if self.window is not None:
            sees_LL = sees_LL & (self.distance_LL + step < self.window)
        context = torch.einsum("bgqld,bgsd->bgqls", query, self.keys[0])
        sees_B11LL = (sees_LL & self.same_BLL)[:, None, None]
        scores = [context.masked_fill(~sees_B11LL, -torch.inf)]
        for place, key in enumerate(self.keys[1:], 1):
            own = torch.einsum("bgqld,bgld->bgql", query, key)[..., None]
            is_old = self.window is not None and step - place >= self.window
            scores.append(torch.full_like(own, -torch.inf) if is_old else own)
        length = query.shape[-2]
        weights = torch.cat(scores, -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        found = torch.einsum("bgqls,bgsd->bgqld", weights[..., :length], self.values[0])
        for place, value in enumerate(self.values[1:]):
            found = found + weights[..., length + place, None] * value[:, :, None]
        return found.flatten(1, 2)


def chain_states(
    head: Eagle3Head,
    taps_BLTD: Tensor,
    embeddings_BLD: Tensor,
    documents_BL: Tensor,
    num_steps: int,
) -> list[Tensor]:
    """The states of the chains of all places after each step, J tensors of shape (B, L, D).

    `embeddings_BLD` are those of the text's own tokens.
    """
    attend = ChainAttention(documents_BL, head.config.window)
    places_BL = torch.arange(documents_BL.shape[1], device=documents_BL.device).expand_as(
        documents_BL
    )
    states_BLD, found = head.fuse(taps_BLTD), []
    for step in range(num_steps):
        following_BLD = shifted(embeddings_BLD, step + 1)
        states_BLD = head(following_BLD, states_BLD, places_BL + step, attend)
        found.append(states_BLD)
    return found


def shifted(values_BL: Tensor, count: int) -> Tensor:
    """What stands `count` places later in the row; zeros behind its end."""
    tail = (0, 0) * (values_BL.dim() - 2)
    return pad(values_BL[:, count:], (*tail, 0, min(count, values_BL.shape[1])))


def counted_steps(is_answer_BL: Tensor, documents_BL: Tensor, step: int) -> Tensor:
    """Places whose chain has a token to predict at this step, (B, L).

    The chain predicts x_{t + 2 + step}, which must be a token of an answer of the same document.
    """
    ahead = step + 2
    same_BL = shifted(documents_BL + 1, ahead) == documents_BL + 1
    return same_BL & shifted(is_answer_BL, ahead)
