"""Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    perplexity = exp(-1/T sum_t log p(x_t | x_<t, within the window))

The logits of a whole window over the whole vocabulary are never there at once.  The decoder runs
on the window; then the model's own forward makes the logits, a slice of positions at a time, with
the decoder answering what it answered before.  So a family's own scaling or capping applies.

Shapes: N windows, L tokens in each, B windows at once, P positions of a slice, S = B * P,
V vocabulary.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp, inf, isnan
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lightstride.data.windows import Windows
from lightstride.errors import ModelError
from lightstride.models.activations import activation_store
from lightstride.models.block_calls import embed, logits_at
from lightstride.models.opening.source import WeightSource
from lightstride.models.sliced_logits import answering, slice_rows
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
    spill: Path | None = None,
    progress: bool = False,
) -> Perplexity:
    """Perplexity over all tokens of all windows but the first and those that are context only.

    A source's weights are needed once, block by block, for all windows, whose hidden states lie in
    memory or in the folder `spill`.  Raises ModelError where the model's logits are NaN.
    """
    if isinstance(windows, Tensor):
        windows_NL, context_N = windows, torch.zeros(len(windows), dtype=torch.int64)
    else:
        windows_NL, context_N = windows.tokens_NL, windows.context_N
    if isinstance(model, WeightSource):
        losses_NL = swept_losses(model, windows_NL, batch_size, spill, progress=progress)
    else:
        losses_NL = token_losses(model, windows_NL, batch_size=batch_size, progress=progress)
    predicted_L = torch.arange(1, windows_NL.shape[1])
    losses = losses_NL[predicted_L >= context_N[:, None]]
    nll = float(losses.double().mean())
    if isnan(nll):
        raise ModelError("the model's logits are NaN on this text, so it has no perplexity")
    return Perplexity(inf if nll > LARGEST_EXPONENT else exp(nll), nll, len(losses))


def token_losses(
    model: PreTrainedModel, windows_NL: Tensor, *, batch_size: int = 1, progress: bool = False
) -> Tensor:
    """Negative log-likelihood of every token but each window's first, fp32 on the CPU, (N, L-1)."""
    batches = windows_NL.split(batch_size)
    bar = Bar(batches, desc="perplexity", disable=not progress)
    return torch.cat(
        [_batch_losses(model, windows_BL.to(model.device)).cpu() for windows_BL in bar]
    )


@torch.inference_mode()
def swept_losses(
    source: WeightSource,
    windows_NL: Tensor,
    batch_size: int,
    spill: Path | None,
    *,
    progress: bool = False,
) -> Tensor:
    """What `token_losses` gives, all windows passing each block before the next is needed."""
    batches = [slice(i, i + batch_size) for i in range(0, len(windows_NL), batch_size)]
    model, adapter, device = source.model, source.adapter, source.device
    with ExitStack() as stack:
        hidden_NLD, calls = embed(
            source, windows_NL, batches, stack.enter_context(activation_store(spill))
        )
        total = source.geometry.num_blocks
        bar = stack.enter_context(Bar(total=total, desc="perplexity", disable=not progress))
        with source.blocks() as blocks:
            for index, block in enumerate(blocks):
                here = {size: some[index].to(device) for size, some in calls.items()}
                for rows in batches:
                    hidden_BLD = hidden_NLD[rows].to(device)
                    call = here[len(hidden_BLD)]
                    hidden_NLD[rows] = block(hidden_BLD, *call.args, **call.kwargs)
                bar.update()
        stack.enter_context(source.head())
        losses = []
        for rows in batches:
            windows_BL = windows_NL[rows].to(device)
            hidden_BLD = hidden_NLD[rows].to(device)
            step = max(1, slice_rows(model, device) // len(windows_BL))
            positions = torch.arange(windows_BL.shape[1], device=device).split(step)
            slices = (
                (int(some_P[0]), logits_BPV)
                for some_P in positions
                for logits_BPV in logits_at(
                    model, adapter, windows_BL, hidden_BLD, some_P, windows_BL.numel()
                )
            )
            losses.append(sliced_losses(windows_BL, slices).cpu())
    return torch.cat(losses)


@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, windows_BL: Tensor) -> Tensor:
    return sliced_losses(windows_BL, logits_in_slices(model, windows_BL))


def sliced_losses(windows_BL: Tensor, logits: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Losses (B, L-1) from logits that come a slice of positions at a time."""
    slices = []
    for start, logits_BPV in logits:
        targets_BP = windows_BL[:, start + 1 : start + 1 + logits_BPV.shape[1]]
        logits_SV = logits_BPV[:, : targets_BP.shape[1]].flatten(0, 1).float()
        losses_S = cross_entropy(logits_SV, targets_BP.flatten(), reduction="none")
        slices.append(losses_S.view_as(targets_BP))
    return torch.cat(slices, dim=1)


def logits_in_slices(model: PreTrainedModel, windows_BL: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first position and the logits, (B, P, V), of one slice of positions after the other."""
    batch_size, length = windows_BL.shape
    step = max(1, slice_rows(model) // batch_size)
    decoder = model.get_decoder()
    assert decoder is not model, "a model whose decoder is itself cannot be sliced"
    answer = decoder(windows_BL, use_cache=False)
    with answering(decoder, answer):
        for start in range(0, length, step):
            positions_P = torch.arange(start, min(start + step, length), device=windows_BL.device)
            output = model(windows_BL, use_cache=False, logits_to_keep=positions_P)
            yield start, output.logits
