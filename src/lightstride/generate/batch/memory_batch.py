"""Rows in a model whose heads keep what a memory plan lets them: `CachedBatch`'s other storage.

Decoders do not know which of the two they have.  Prompts are read in chunks, and what is old is
smashed after each, so a long prompt never needs the full cache.

Shapes: B rows of a forward, Q new columns, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.generate.batch.forward import CachedBatch, Forward, Logits
from lightstride.generate.batch.packed import packed_layers
from lightstride.memory.attention import check_readable, read_by
from lightstride.memory.cache import Memory, MemoryCache

PROMPT_CHUNK = 512
"""Tokens of a prompt read at once: heads that keep little hold so many more for a moment."""


class MemoryBatch(CachedBatch):
    """Rows in a model, growing by what is kept and shrinking by what is smashed.

    What a row holds of its beginning depends on how far it has come, so it is no other row's.
    """

    can_keep_prefixes = False

    def __init__(self, model: PreTrainedModel, memory: Memory) -> None:
        super().__init__(model, "dynamic")
        check_readable(model)
        self.held = MemoryCache(model, memory)

    def add_row(self) -> None:
        """Add a row of no entries behind the others."""
        super().add_row()
        self.held.add_row()

    def move_row(self, source: int, target: int) -> None:
        """Write a row over another, which is given up."""
        if source != target:
            self.reorder({target: source})

    def swap_rows(self, one: int, other: int) -> None:
        """Exchange two rows."""
        if one != other:
            self.reorder({one: other, other: one})

    def reorder(self, sources: dict[int, int]) -> None:
        """Let each of these rows be what another was."""
        order = [sources.get(row, row) for row in range(len(self.used))]
        self.held.select_rows(order)
        self.used = [self.used[row] for row in order]
        self.positions = [self.positions[row] for row in order]

    def drop_last(self) -> None:
        """Forget the last row."""
        super().drop_last()
        self.held.select_rows(range(len(self.used)))
        self.held.pack()

    def read(self, rows: slice, tokens: Sequence[Sequence[int]], taps: Sequence[int]) -> Forward:
        """Read further tokens of each row, chunk by chunk, all of which stay."""
        width = max(map(len, tokens))
        parts = []
        for end in range(width % PROMPT_CHUNK or PROMPT_CHUNK, width + 1, PROMPT_CHUNK):
            parts.append(super().read(rows, [columns(each, width, end) for each in tokens], taps))
        self.held.pack()
        return joined(parts)

    def forward(
        self,
        rows: slice,
        *,
        depths_BQ: Tensor,
        tokens_BQ: Tensor | None = None,
        embeddings_BQD: Tensor | None = None,
        sees_BQQ: Tensor | None = None,
        places_BQ: Tensor | None = None,
        taps: Sequence[int] = (),
        logit_columns: Sequence[int] = (0,),
    ) -> Forward:
        """Run new columns, which stay scratch until they are kept, at whatever place."""
        device = self.model.device
        num_rows, num_new = depths_BQ.shape
        if sees_BQQ is None:
            sees_BQQ = torch.ones(1, num_new, num_new, dtype=torch.bool).tril()
        positions_BQ = torch.tensor(self.positions[rows])[:, None] + 1 + depths_BQ.cpu()
        self.held.open(rows, positions_BQ, sees_BQQ.expand(num_rows, num_new, num_new))
        with packed_layers(self.model), read_by(self.model, self.held):
            output = self.model(
                input_ids=tokens_BQ,
                inputs_embeds=embeddings_BQD,
                position_ids=positions_BQ.to(device),
                use_cache=False,
                logits_to_keep=torch.tensor(logit_columns, device=device),
                output_hidden_states=list(taps) if taps else None,
            )
        return Forward(
            Logits.of_rectangle(output.logits), {tap: output.hidden_states[tap] for tap in taps}
        )

    def give_up(self) -> None:
        """Forget a forward that ended before its last layer."""
        self.held.settle(torch.zeros_like(self.held.positions_BQ, dtype=torch.bool))

    def keep(self, rows: slice, kept: Sequence[Sequence[int]], advance: Sequence[int]) -> None:
        """Of the columns just run, each row keeps these and forgets the rest."""
        num_new = self.held.positions_BQ.shape[1]
        kept_BQ = torch.zeros(len(kept), num_new, dtype=torch.bool)
        for row, columns in enumerate(kept):
            kept_BQ[row, list(columns)] = True
        self.held.settle(kept_BQ)
        super().count(rows, [len(each) for each in kept], advance)

    def count(self, rows: slice, entries: Sequence[int], advance: Sequence[int]) -> None:
        """Let the last so many new columns of each row count, and move its position on."""
        num_new = self.held.positions_BQ.shape[1]
        kept_BQ = torch.ones(len(entries), num_new, dtype=torch.bool)
        if any(number != num_new for number in entries):
            kept_BQ = torch.arange(num_new) >= num_new - torch.tensor(list(entries))[:, None]
        self.held.settle(kept_BQ)
        super().count(rows, entries, advance)

    def reserve(self, capacity: int, max_rows: int | None) -> None:
        """Nothing: what is needed is not known before it is there."""

    @property
    def flattens(self) -> bool:
        """No: what a head keeps is decided row by row."""
        return False

    def share(self, row: int) -> float:
        """Entries a token and head that a row holds."""
        tokens = self.positions[row] + 1
        return self.held.entries_of(row) / (self.held.plan.num_heads * tokens) if tokens else 1.0

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of all heads."""
        return self.held.entry_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return self.held.allocated_bytes


def columns(tokens: Sequence[int], width: int, end: int) -> Sequence[int]:
    """A row's tokens in the chunk that ends at a column, were it padded in front to a width."""
    pad = width - len(tokens)
    return tokens[max(0, end - PROMPT_CHUNK - pad) : max(0, end - pad)]


def joined(parts: Sequence[Forward]) -> Forward:
    """Forwards of chunks as one: the logits of the last, and all hidden states."""
    hidden = {
        tap: torch.cat([part.hidden[tap] for part in parts], dim=1) for tap in parts[0].hidden
    }
    return Forward(parts[-1].logits, hidden)
