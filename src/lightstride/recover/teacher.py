"""What the dense model says of each row of text, computed once and remembered.

Kept are the top k of its next-token distributions and the mass of the rest
(`training/top_k_kl.py`): 388 bytes a token for 64, a fifth of its hidden states at that size of
model and none of their product with the head.  A row is always read alone, so that what is said
of it does not depend on what it is read with, and a resumed run has the same bits.

Shapes: L tokens of a row, P positions of a slice, D hidden size, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.distributed import gather_objects
from lightstride.models.families.adapter import Adapter
from lightstride.models.head_logits import head_inputs
from lightstride.models.sliced_logits import cached_rows
from lightstride.recover.attention import plain_products
from lightstride.recover.losses import PRODUCT_ROWS
from lightstride.recover.said import SaidRows
from lightstride.training.fsdp import is_shared_out
from lightstride.training.top_k_kl import Teacher, concatenate, remember


class Says(ABC):
    """What a training asks: a model in memory, or one that is read block by block."""

    @property
    def seconds_ahead(self) -> float:
        """Of this run, those spent on rows that nobody has asked for yet."""
        return 0.0

    @abstractmethod
    def say(self, numbers: list[int], tokens_BL: Tensor) -> list[Teacher]:
        """Its distributions at all positions of rows, which are named by numbers."""

    def expect(self, coming: Iterable[int]) -> None:  # noqa: B027
        """Hear which rows are asked for next, in order, as far as that can be foreseen."""


@dataclass
class Dense(Says):
    """The dense model in memory."""

    model: PreTrainedModel
    adapter: Adapter
    top_k: int
    """Likeliest tokens of a position that are told apart."""
    kept: SaidRows
    """What was said before."""

    def say(self, numbers: list[int], tokens_BL: Tensor) -> list[Teacher]:
        """Its distributions at all positions of rows, which are named by numbers.

        Processes that share the weights out read as many rows each.
        """
        pairs = dict(zip(numbers, tokens_BL, strict=True))
        known = {number: self.kept.recall(number, pairs[number]) for number in numbers}
        missing = [number for number, said in known.items() if said is None]
        most = len(missing)
        if is_shared_out(self.adapter.decoder(self.model)):
            most = max(gather_objects(most))
        for number in missing:
            known[number] = said = self.read(pairs[number])
            self.kept.keep(number, pairs[number], said)
        for _ in range(most - len(missing)):
            self.read(tokens_BL.new_zeros(tokens_BL.shape[1]))
        return [said.to(self.model.device) for said in known.values() if said is not None]

    @torch.no_grad()
    def read(self, tokens_L: Tensor) -> Teacher:
        """The same, computed anew."""
        inputs_1L = tokens_L[None].to(self.model.device)
        decoder = self.adapter.decoder(self.model)
        with plain_products(self.model.config, inputs_1L.device, len(tokens_L)):
            hidden_LD = decoder(input_ids=inputs_1L, use_cache=False).last_hidden_state[0]
        return said_after(self.model, hidden_LD, self.top_k)


def said_after(model: PreTrainedModel, hidden_LD: Tensor, top_k: int) -> Teacher:
    """The likeliest tokens after each of the decoder's answers; the head is there."""
    hidden_LD = head_inputs(model.config, hidden_LD)
    head = model.get_output_embeddings()
    found = []
    for hidden_PD in hidden_LD.split(PRODUCT_ROWS):
        logits_PV = head(hidden_PD)
        parts = logits_PV.split(cached_rows(logits_PV))
        found += [remember(part, top_k) for part in parts]
    return concatenate(found)
