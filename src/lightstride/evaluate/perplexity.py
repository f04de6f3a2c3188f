"""Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    perplexity = exp(-1/T sum_t log p(x_t | x_<t, within the window))

Shapes: N windows, L tokens in each, B windows at once, P positions of a slice, S = B * P,
V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, isnan

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lightstride.data.windows import Windows
from lightstride.errors import ModelError
from lightstride.evaluate.text_logits import text_logits
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Spill
from lightstride.progress import Bar

LARGEST_EXPONENT = 700


@dataclass(frozen=True)
class Perplexity:
    """A model's perplexity on a text."""

    value: float
    nll: float
    """Mean negative log-likelihood in nats."""
    num_tokens: int
    """Predicted tokens."""


def perplexity(
    model: PreTrainedModel | WeightSource,
    windows: Windows | Tensor,
    *,
    batch_size: int = 1,
    spill: Spill | None = None,
    progress: bool = False,
) -> Perplexity:
    """Perplexity over all tokens of all windows but the first and those that are context only.

    A source's weights are needed once, block by block, for all windows, whose hidden states lie in
    memory or, if they are too large, where `spill` says.  ModelError where the logits are NaN.
    """
    if isinstance(windows, Tensor):
        windows_NL, context_N = windows, torch.zeros(len(windows), dtype=torch.int64)
    else:
        windows_NL, context_N = windows.tokens_NL, windows.context_N
    losses_NL = token_losses(
        model, windows_NL, batch_size=batch_size, spill=spill, progress=progress
    )
    predicted_L = torch.arange(1, windows_NL.shape[1])
    losses = losses_NL[predicted_L >= context_N[:, None]]
    nll = float(losses.double().mean())
    if isnan(nll):
        raise ModelError("the model's logits are NaN on this text, so it has no perplexity")
    return Perplexity(inf if nll > LARGEST_EXPONENT else exp(nll), nll, len(losses))


@torch.no_grad()  # whose buffers of shared-out weights training can use again
def token_losses(
    model: PreTrainedModel | WeightSource,
    windows_NL: Tensor,
    *,
    batch_size: int = 1,
    spill: Spill | None = None,
    progress: bool = False,
) -> Tensor:
    """Negative log-likelihood of every token but each window's first, fp32 on the CPU, (N, L-1)."""
    batches = windows_NL.split(batch_size)
    title = "perplexity" if progress else ""
    shown = progress and not isinstance(model, WeightSource)  # a source's bar counts blocks
    with text_logits(model, batches, spill, title=title) as logits_of:
        bar = Bar(range(len(batches)), desc=title, disable=not shown)
        return torch.cat([sliced_losses(batches[number], logits_of(number)) for number in bar])


def sliced_losses(windows_BL: Tensor, logits: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Losses (B, L-1), on the CPU, from logits that come a slice of positions at a time."""
    slices = []
    for start, logits_BPV in logits:
        targets_BP = windows_BL[:, start + 1 : start + 1 + logits_BPV.shape[1]]
        logits_SV = logits_BPV[:, : targets_BP.shape[1]].flatten(0, 1).float()
        targets_S = targets_BP.flatten().to(logits_SV.device)
        losses_S = cross_entropy(logits_SV, targets_S, reduction="none")
        slices.append(losses_S.view_as(targets_BP).cpu())
    return torch.cat(slices, dim=1)
