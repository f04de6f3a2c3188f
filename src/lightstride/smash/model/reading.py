"""A base that reads packed rows: its hidden states at some taps, every token a slot of its own.

Shapes: B rows, L tokens, Q columns, D hidden size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.generate.batch.masks import attention_argument, slot_positions
from lightstride.models.families.registry import adapter_for
from lightstride.smash.model.slots import SlotBatch, causal_mask


class PackedReader(Protocol):
    """Reads packed rows."""

    base: PreTrainedModel

    @property
    def taps(self) -> Sequence[int]:
        """Numbers of the hidden states that are read."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def read_packed(self, batch: SlotBatch) -> tuple[Tensor, ...]:
        """Hidden states at the taps, each (B, L, D)."""
        ...


class BaseReader:
    """A base alone, read at these taps and after its last block (normed, as its head takes it)."""

    def __init__(self, base: PreTrainedModel, taps: Sequence[int]) -> None:
        self.base = base
        self.taps = (*taps, adapter_for(base.config).geometry(base.config).num_blocks)

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.base.device

    def embed(self, tokens: Tensor) -> Tensor:
        """The base's embeddings of tokens of any shape, one more dimension D."""
        embeddings = self.base.get_input_embeddings()(tokens)
        assert isinstance(embeddings, Tensor)
        return embeddings

    def read_packed(self, batch: SlotBatch) -> tuple[Tensor, ...]:
        """Hidden states at the taps, each (B, L, D); nothing may be merged."""
        assert batch.tokens_BL.shape == batch.lengths_BS.shape
        positions_BL = slot_positions(batch.lengths_BS, documents_BS=batch.documents_BS)
        sees_BLL = causal_mask(batch.lengths_BS, batch.documents_BS)
        embeddings_BLD = self.embed(batch.tokens_BL)
        return read_states(
            self.base, embeddings_BLD, positions_BL.clamp(min=0), sees_BLL, self.taps
        )


def read_states(
    base: PreTrainedModel,
    embeddings_BQD: Tensor,
    positions_BQ: Tensor,
    sees_BQQ: Tensor,
    taps: Sequence[int],
) -> tuple[Tensor, ...]:
    """The base's hidden states at the taps, each (B, Q, D).

    Positions are gapped and rows may be packed, so the mask is explicit: left to itself,
    transformers would take every gap for the border of a packed sequence.
    """
    output = adapter_for(base.config).decoder(base)(
        inputs_embeds=embeddings_BQD,
        position_ids=positions_BQ,
        attention_mask=attention_argument(sees_BQQ, base.config, base.dtype),
        use_cache=False,
        output_hidden_states=list(taps),
    )
    return tuple(output.hidden_states[tap] for tap in taps)
