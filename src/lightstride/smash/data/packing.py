"""Answers packed into rows, and the same rows cut into segments.

Several documents (a prompt and its answer) share a row up to a token budget and do not see each
other.  A prompt is never merged.  How an answer is cut is drawn for each document anew, from the
seed and the number of the batch alone, so that a resumed run draws the same.

Shapes: B rows, L tokens, S slots, A tokens of an answer.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightstride.smash.data.cutting import draw_segmentation
from lightstride.smash.data.examples import Example
from lightstride.smash.model.slots import SlotBatch

RowPlan = list[list[int]]
"""A batch: for each row, which documents it holds."""


@dataclass(frozen=True)
class Batch:
    """Packed rows; `rows` holds the documents they were made of, in order."""

    rows: tuple[tuple[Example, ...], ...]
    tokens_BL: Tensor
    greedy_BL: Tensor
    """The base's likeliest token in the place of each answer's token; elsewhere junk."""
    is_answer_BL: Tensor
    documents_BL: Tensor
    """Number of each token's document in its row, ascending; padding has one of its own."""

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(document.answer_A) for row in self.rows for document in row)

    def unmerged(self) -> SlotBatch:
        """Every token a slot of its own."""
        sizes_B1 = torch.tensor([[len(row)] for row in self.rows], device=self.tokens_BL.device)
        is_real_BL = self.documents_BL < sizes_B1
        return SlotBatch(
            self.tokens_BL, is_real_BL.long(), precedes_answer(self.is_answer_BL), self.documents_BL
        )

    def cut_into(self, lengths: Sequence[Sequence[int]]) -> SlotBatch:
        """Answers cut as told: segment lengths of each document, in the order of the rows."""
        found = iter(lengths)
        rows = [[(document, next(found)) for document in row] for row in self.rows]
        device = self.tokens_BL.device

        def padded(values: list[list[int]], filler: int) -> Tensor:
            return pad_sequence(
                [torch.tensor(row) for row in values], batch_first=True, padding_value=filler
            ).to(device)

        lengths_BS = padded(
            [[n for d, cut in row for n in (*[1] * len(d.prompt_P), *cut)] for row in rows], 0
        )
        is_answer_BS = padded(
            [[a for d, c in row for a in (*[0] * len(d.prompt_P), *[1] * len(c))] for row in rows],
            0,
        ).bool()
        most = max(map(len, rows))
        documents_BS = padded(
            [
                [i for i, (d, c) in enumerate(row) for _ in range(len(d.prompt_P) + len(c))]
                for row in rows
            ],
            most,
        )
        return SlotBatch(self.tokens_BL, lengths_BS, precedes_answer(is_answer_BS), documents_BS)


def precedes_answer(is_answer_BS: Tensor) -> Tensor:
    """True where the next slot belongs to an answer."""
    return torch.nn.functional.pad(is_answer_BS[:, 1:], (0, 1))


def make_batch(rows: Sequence[Sequence[Example]], device: torch.device | str = "cpu") -> Batch:
    """Rows of documents as tensors."""

    def padded(values: list[list[Tensor]], filler: int) -> Tensor:
        joined = [torch.cat(row) for row in values]
        return pad_sequence(joined, batch_first=True, padding_value=filler).to(device)

    most = max(map(len, rows))
    return Batch(
        rows=tuple(map(tuple, rows)),
        tokens_BL=padded([[t for d in row for t in (d.prompt_P, d.answer_A)] for row in rows], 0),
        greedy_BL=padded([[t for d in row for t in (d.prompt_P, d.greedy_A)] for row in rows], 0),
        is_answer_BL=padded(
            [
                [
                    t
                    for d in row
                    for t in (torch.zeros_like(d.prompt_P), torch.ones_like(d.answer_A))
                ]
                for row in rows
            ],
            0,
        ).bool(),
        documents_BL=padded(
            [
                [torch.full((len(d.prompt_P) + len(d.answer_A),), i) for i, d in enumerate(row)]
                for row in rows
            ],
            most,
        ),
    )


def plan_batches(
    sizes: Sequence[int], *, row_tokens: int, num_rows: int, seed: int
) -> Iterator[RowPlan]:
    """Batches without end: every document once an epoch, in an order of its own each epoch.

    A row holds at most `row_tokens`, or one document that is longer.
    """
    epoch = 0
    while True:
        order = list(range(len(sizes)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from pack_documents(order, sizes, row_tokens=row_tokens, num_rows=num_rows)
        epoch += 1


def pack_documents(
    order: Sequence[int], sizes: Sequence[int], *, row_tokens: int, num_rows: int
) -> Iterator[RowPlan]:
    """Documents in this order, each in the first row of the batch that has room for it."""
    rows: RowPlan = []
    used: list[int] = []
    for document in order:
        size = sizes[document]
        place = next((i for i, n in enumerate(used) if n + size <= row_tokens), len(rows))
        if place == num_rows:
            yield rows
            rows, used, place = [], [], 0
        if place == len(rows):
            rows.append([])
            used.append(0)
        rows[place].append(document)
        used[place] += size
    if rows:
        yield rows


def draw_cut(
    example: Example, rng: random.Random, *, max_segment: int, vocab_size: int
) -> list[int]:
    """Segment lengths of an answer, by a rule drawn at random."""
    segmentation = draw_segmentation(rng, max_segment=max_segment)
    return segmentation.lengths(example.entropy_A.tolist(), vocab_size)
