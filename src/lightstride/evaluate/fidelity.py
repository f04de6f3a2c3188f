"""How far a model's next-token distributions are from the dense model's, over a text.

    KL(dense | model) = sum_v p_v (log p_v - log q_v)    at every position, in nats

told as its mean and its 99th percentile, with the share of positions at which both find the same
token likeliest.  Both models read the same windows; logits are made a slice of positions at a time.

Shapes: N windows, L tokens in each, P positions of a slice, C of them that a core keeps close,
V vocabulary, T positions of all windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.errors import ModelError
from lightstride.evaluate.perplexity import logits_in_slices
from lightstride.models.sliced_logits import cached_rows


@dataclass(frozen=True)
class Fidelity:
    """How alike two models answer."""

    mean: float
    """Mean KL, in nats."""
    p99: float
    """Its 99th percentile."""
    same_likeliest: float
    """Share of positions with the same likeliest token."""
    num_tokens: int
    """Positions compared."""


def fidelity(model: PreTrainedModel, dense: PreTrainedModel, windows_NL: Tensor) -> Fidelity:
    """The model against the dense one at all positions; ModelError for another vocabulary."""
    sizes = [each.get_output_embeddings().weight.shape[0] for each in (model, dense)]
    if sizes[0] != sizes[1]:
        raise ModelError(f"vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens cannot be compared")
    losses, same = [], []
    for window_L in windows_NL:
        found_T, same_T = window_divergence(model, dense, window_L[None])
        losses.append(found_T)
        same.append(same_T)
    losses_T, same_T = torch.cat(losses).double(), torch.cat(same)
    return Fidelity(
        mean=float(losses_T.mean()),
        p99=float(losses_T.quantile(0.99)),
        same_likeliest=float(same_T.double().mean()),
        num_tokens=len(losses_T),
    )


@torch.inference_mode()
def window_divergence(
    model: PreTrainedModel, dense: PreTrainedModel, window_1L: Tensor
) -> tuple[Tensor, Tensor]:
    """KL and whether the likeliest tokens are the same, both (L,), on the CPU."""
    losses, same = [], []
    ours = logits_in_slices(model, window_1L.to(model.device))
    theirs = logits_in_slices(dense, window_1L.to(dense.device))
    for (_, ours_1PV), (_, theirs_1PV) in zip(ours, theirs, strict=True):
        step = cached_rows(ours_1PV[0])
        pairs = zip(ours_1PV[0].split(step), theirs_1PV[0].split(step), strict=True)
        for ours_CV, theirs_CV in pairs:
            q_CV = ours_CV.float().log_softmax(-1)
            p_CV = theirs_CV.to(q_CV.device).float().log_softmax(-1)
            losses.append((p_CV.exp() * (p_CV - q_CV)).sum(-1).cpu())
            same.append((p_CV.argmax(-1) == q_CV.argmax(-1)).cpu())
    return torch.cat(losses), torch.cat(same)
