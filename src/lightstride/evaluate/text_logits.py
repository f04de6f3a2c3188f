"""Logits at every position of texts, from a model in memory or one that is read block by block.

The logits of a whole window over the whole vocabulary are never there at once.  The decoder runs
on the window; then the model's own forward makes the logits, a slice of positions at a time, with
the decoder answering what it answered before.  So a family's own scaling or capping applies.

Shapes: B windows at once, L tokens in each, P positions of a slice, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.block_calls import logits_at
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Piece, Spill, passed
from lightstride.models.sliced_logits import answering, slice_rows

Slices = Iterator[tuple[int, Tensor]]
"""The first position and the logits (B, P, V) of one slice of positions after the other."""


@contextmanager
def text_logits(
    model: PreTrainedModel | WeightSource,
    batches: Sequence[Tensor],
    spill: Spill | None = None,
    *,
    title: str = "",
) -> Iterator[Callable[[int], Slices]]:
    """Inside, a function gives the logits of a batch of windows (B, L) by its number.

    A source has then brought all of them to the end of its last block.
    """
    if isinstance(model, WeightSource):
        pieces = [Piece({"input_ids": windows_BL}) for windows_BL in batches]
        with passed(model, pieces, spill, title=title) as states:
            yield lambda number: slices_of(model, batches[number], states[number])
    else:
        yield lambda number: logits_in_slices(model, batches[number].to(model.device))


def logits_in_slices(model: PreTrainedModel, windows_BL: Tensor) -> Slices:
    """The logits of a batch, from a model in memory."""
    decoder = model.get_decoder()
    assert decoder is not model, "a model whose decoder is itself cannot be sliced"
    answer = decoder(windows_BL, use_cache=False)
    with answering(decoder, answer):
        for positions_P in slices(windows_BL, slice_rows(model)):
            output = model(windows_BL, use_cache=False, logits_to_keep=positions_P)
            yield int(positions_P[0]), output.logits


def slices_of(source: WeightSource, windows_BL: Tensor, hidden_BLD: Tensor) -> Slices:
    """The same, from what a source's last block answered; what makes logits is there."""
    model, device = source.model, source.device
    tokens_BL = windows_BL.to(device)
    for positions_P in slices(tokens_BL, slice_rows(model, device)):
        most = tokens_BL.numel()
        for logits_BPV in logits_at(
            model, source.adapter, tokens_BL, hidden_BLD, positions_P, most
        ):
            yield int(positions_P[0]), logits_BPV


def slices(windows_BL: Tensor, most: int) -> Sequence[Tensor]:
    """All positions, in slices of at most so many logits of a batch, if one has room for it."""
    positions_L = torch.arange(windows_BL.shape[1], device=windows_BL.device)
    return list(positions_L.split(max(1, most // len(windows_BL))))
