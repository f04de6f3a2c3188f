"""Logits of some positions only, a slice at a time, by the model's own forward.

The logits of a whole text over the whole vocabulary are never there at once.  The decoder runs
once; then the model's forward makes the logits of a slice, with the decoder answering what it
answered before.  So a family's own scaling or capping applies.

Shapes: B rows, L positions, N picked positions, P of them in a slice, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

SLICE_BYTES = {"cpu": 12 * 2**20}
"""Size of a slice of logits in fp32; on a CPU small enough for the allocator to use again."""
ACCELERATOR_SLICE_BYTES = 512 * 2**20
CACHED_BYTES = 2**20
"""Logits in fp32 that a processor core keeps close."""


def slice_rows(model: PreTrainedModel, device: torch.device | None = None) -> int:
    """How many positions a slice of logits may have where the head is, or on a device."""
    where = model.device if device is None else device
    limit = SLICE_BYTES.get(where.type, ACCELERATOR_SLICE_BYTES)
    vocab_size: int = model.get_output_embeddings().weight.shape[0]
    return max(1, limit // (4 * vocab_size))


def cached_rows(logits_NV: Tensor) -> int:
    """How many rows of logits, in fp32, stay in the nearest cache of a CPU."""
    limit = CACHED_BYTES if logits_NV.device.type == "cpu" else ACCELERATOR_SLICE_BYTES
    return max(1, limit // (4 * logits_NV.shape[1]))


def log_totals(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials, and the maximum, of every row in fp32: (N,) and (N,).

    On a CPU a few rows at a time: what fits the nearest cache is some four times as fast.
    """
    totals, tops = [], []
    for rows_RV in logits_NV.split(cached_rows(logits_NV)):
        values_RV = rows_RV.float()
        top_R = values_RV.amax(1)
        if values_RV is rows_RV:
            values_RV = values_RV - top_R[:, None]
        else:
            values_RV -= top_R[:, None]
        totals.append(values_RV.exp_().sum(1).log_() + top_R)
        tops.append(top_R)
    return torch.cat(totals), torch.cat(tops)


def picked_logits(
    model: PreTrainedModel, tokens_BL: Tensor, real_BL: Tensor, picked_BL: Tensor
) -> Iterator[Tensor]:
    """Logits after the picked positions, row by row, in slices of shape (P, V).

    Rows are padded at the end; `real` is False there.
    """
    decoder = model.get_decoder()
    assert decoder is not model, "a model whose decoder is itself cannot be sliced"
    hidden_BLD = decoder(
        tokens_BL, attention_mask=real_BL.to(torch.int64), use_cache=False
    ).last_hidden_state
    for hidden_PD in hidden_BLD[picked_BL].split(slice_rows(model)):
        answer = BaseModelOutputWithPast(last_hidden_state=hidden_PD[None])
        stand_in_1P = tokens_BL.new_zeros(1, len(hidden_PD))
        with answering(decoder, answer):
            yield model(stand_in_1P, use_cache=False).logits[0]


@contextmanager
def answering(module: nn.Module, answer: object) -> Iterator[None]:
    """Inside this context the module computes nothing and answers what it is given here."""
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward
