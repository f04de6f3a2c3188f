"""How far a model's next-token distributions are from the dense model's, over a text.

    KL(dense | model) = sum_v p_v (log p_v - log q_v)    at every position, in nats

told as its mean and its 99th percentile, with the share of positions at which both find the same
token likeliest.  Both models read the same windows; logits are made a slice of positions at a time.
Each may lie in memory or be read block by block; then hidden states of all windows are kept.

Shapes: N windows, L tokens in each, P positions of a slice, C of them that a core keeps close,
V vocabulary, T positions of all windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.errors import ModelError
from lightstride.evaluate.text_logits import Slices, text_logits
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Spill
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


@torch.inference_mode()
def fidelity(
    model: PreTrainedModel | WeightSource,
    dense: PreTrainedModel | WeightSource,
    windows_NL: Tensor,
    spills: tuple[Spill | None, Spill | None] = (None, None),
) -> Fidelity:
    """The model against the dense one at all positions; ModelError for another vocabulary."""
    sizes = [vocabulary(each) for each in (model, dense)]
    if sizes[0] != sizes[1]:
        raise ModelError(f"vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens cannot be compared")
    windows, found = windows_NL.split(1), []
    with (
        text_logits(model, windows, spills[0], title="fidelity") as ours,
        text_logits(dense, windows, spills[1], title="fidelity, against") as theirs,
    ):
        for number in range(len(windows)):
            found.append(window_divergence(ours(number), theirs(number)))
    losses_T, same_T = (torch.cat(parts) for parts in zip(*found, strict=True))
    losses_T = losses_T.double()
    return Fidelity(
        mean=float(losses_T.mean()),
        p99=float(losses_T.quantile(0.99)),
        same_likeliest=float(same_T.double().mean()),
        num_tokens=len(losses_T),
    )


def vocabulary(model: PreTrainedModel | WeightSource) -> int:
    """Tokens that a model tells apart."""
    bare = model.model if isinstance(model, WeightSource) else model
    size: int = bare.get_output_embeddings().weight.shape[0]
    return size


def window_divergence(ours: Slices, theirs: Slices) -> tuple[Tensor, Tensor]:
    """KL and whether the likeliest tokens are the same, both (L,), on the CPU, of one window."""
    losses, same = [], []
    for (start, ours_1PV), (other, theirs_1PV) in zip(ours, theirs, strict=True):
        assert start == other
        step = cached_rows(ours_1PV[0])
        pairs = zip(ours_1PV[0].split(step), theirs_1PV[0].split(step), strict=True)
        for ours_CV, theirs_CV in pairs:
            q_CV = ours_CV.float().log_softmax(-1)
            p_CV = theirs_CV.to(q_CV.device).float().log_softmax(-1)
            losses.append((p_CV.exp() * (p_CV - q_CV)).sum(-1).cpu())
            same.append((p_CV.argmax(-1) == q_CV.argmax(-1)).cpu())
    return torch.cat(losses), torch.cat(same)
