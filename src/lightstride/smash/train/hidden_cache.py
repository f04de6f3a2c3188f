"""Hidden states of a frozen base on unmerged answers, kept in memory for the next epochs.

A base that does not learn reads the same text the same way every time, and that reading is most
of what a batch of drafts costs.  Only what drafts need is kept: the hidden states at the taps, of
each answer's tokens and the last of its prompt.  Answers are read in fixed groups, never in the
batch that happens to ask for them, so that a resumed run has the same bits.

Shapes: B rows, L tokens, T taps, D hidden size, A tokens of an answer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightstride.models.families.registry import adapter_for
from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, make_batch, pack_documents
from lightstride.smash.model.reading import PackedReader

GIB = 2**30


class HiddenStateCache:
    """Hidden states of answers, read when first asked for."""

    def __init__(
        self,
        model: PackedReader,
        examples: Sequence[Example],
        row_tokens: int,
        *,
        prompts: bool = False,
    ) -> None:
        self.model = model
        self.examples = examples
        self.prompts = prompts
        """Whether whole prompts are kept too."""
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
    def num_bytes(
        model: PackedReader, examples: Sequence[Example], *, prompts: bool = False
    ) -> int:
        """Bytes that all of them take."""
        tokens = sum(len(each.answer_A) + before(each, prompts) for each in examples)
        size: int = next(model.base.parameters()).element_size()
        return tokens * len(model.taps) * hidden_size(model) * size

    @torch.no_grad()
    def states(self, batch: Batch) -> tuple[Tensor, ...]:
        """Hidden states, each (B, L, D), of unmerged rows; zero where none are kept."""
        wanted = {self.group_of[d.id] for row in batch.rows for d in row if d.id not in self.known}
        for number in sorted(wanted):
            self.read(number)
        shape = (len(self.model.taps), *batch.tokens_BL.shape, hidden_size(self.model))
        device = batch.tokens_BL.device
        taps_TBLD = torch.zeros(shape, dtype=self.known[batch.rows[0][0].id].dtype, device=device)
        for number, place, document in self.places(batch):
            taps_TBLD[:, number, place] = self.known[document.id].to(device)
        return tuple(taps_TBLD)

    def read(self, number: int) -> None:
        """Read one group."""
        batch = make_batch(
            [[self.examples[d] for d in row] for row in self.groups[number]], self.model.device
        )
        taps_TBLD = torch.stack(self.model.read_packed(batch.unmerged()))
        for index, place, document in self.places(batch):
            self.known[document.id] = taps_TBLD[:, index, place].clone()

    def places(self, batch: Batch) -> Iterator[tuple[int, slice, Example]]:
        """Row and kept tokens of every document."""
        for number, row in enumerate(batch.rows):
            start = 0
            for document in row:
                end = start + len(document.prompt_P) + len(document.answer_A)
                first = end - len(document.answer_A) - before(document, self.prompts)
                yield number, slice(first, end), document
                start = end


def before(example: Example, prompts: bool) -> int:
    """Tokens of a prompt whose states are kept."""
    return len(example.prompt_P) if prompts else 1


def hidden_size(model: PackedReader) -> int:
    """Values of a hidden state."""
    return adapter_for(model.base.config).geometry(model.base.config).hidden_size
