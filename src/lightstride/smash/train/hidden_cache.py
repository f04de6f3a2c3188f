"""Hidden states of a frozen base on unmerged answers, kept in memory for the next epochs.

A base that does not learn reads the same text the same way every time, and that reading is most
of what a batch of drafts costs.  Only what drafts need is kept: the hidden states at the taps, of
each answer's tokens and the last of its prompt.  Answers are read in fixed groups, never in the
batch that happens to ask for them, so that a resumed run has the same bits.

Shapes: B rows, L tokens, T taps, D hidden size, A tokens of an answer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, make_batch, pack_documents
from lightstride.smash.model.body import SmashBody

GIB = 2**30


class HiddenStateCache:
    """Hidden states of answers, read when first asked for."""

    def __init__(self, model: SmashBody, examples: Sequence[Example], row_tokens: int) -> None:
        self.model = model
        self.examples = examples
        sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
        order = sorted(range(len(examples)), key=lambda index: (sizes[index], examples[index].id))
        self.groups = list(pack_documents(order, sizes, row_tokens=row_tokens, num_rows=2))
        self.group_of = {
            examples[document].id: number
            for number, plan in enumerate(self.groups)
            for row in plan
            for document in row
        }
        self.known: dict[str, Tensor] = {}

    @staticmethod
    def num_bytes(model: SmashBody, examples: Sequence[Example]) -> int:
        """Bytes that all of them take."""
        assert model.config.taps is not None
        tokens = sum(len(each.answer_A) + 1 for each in examples)
        size = next(model.base.parameters()).element_size()
        return int(tokens * len(model.config.taps) * model.config.hidden_size * size)

    @torch.no_grad()
    def states(self, batch: Batch) -> tuple[Tensor, ...]:
        """Hidden states, each (B, L, D), of rows in which nothing is merged; zero in prompts."""
        wanted = {self.group_of[d.id] for row in batch.rows for d in row if d.id not in self.known}
        for number in sorted(wanted):
            self.read(number)
        assert self.model.config.taps is not None
        shape = (len(self.model.config.taps), *batch.tokens_BL.shape, self.model.config.hidden_size)
        device = batch.tokens_BL.device
        taps_TBLD = torch.zeros(shape, dtype=self.known[batch.rows[0][0].id].dtype, device=device)
        for number, row in enumerate(batch.rows):
            start = 0
            for document in row:
                first = start + len(document.prompt_P) - 1
                end = start + len(document.prompt_P) + len(document.answer_A)
                taps_TBLD[:, number, first:end] = self.known[document.id].to(device)
                start = end
        return tuple(taps_TBLD)

    def read(self, number: int) -> None:
        """Read one group."""
        batch = make_batch(
            [[self.examples[d] for d in row] for row in self.groups[number]], self.model.device
        )
        taps_TBLD = torch.stack(self.model.read_packed(batch.unmerged()))
        for index, row in enumerate(batch.rows):
            start = 0
            for document in row:
                first = start + len(document.prompt_P) - 1
                end = start + len(document.prompt_P) + len(document.answer_A)
                self.known[document.id] = taps_TBLD[:, index, first:end].clone()
                start = end
