"""The dense model where it does not fit beside the one that learns: read from disk block by block.

When a row is asked for of which nothing is known, the rows that the next steps ask for pass the
blocks with it, so that the weights are read once for all of them.  What is said of those waits in
memory, and on disk as for a model that is there (`said.py`).  Each row is a piece of its own: the
same bits as when the whole model reads it, whatever it is read with.

Shapes: N rows of L tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightstride.models.block_calls import recorders, with_output
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Piece, passed
from lightstride.recover.attention import plain_products
from lightstride.recover.said import SaidRows
from lightstride.recover.teacher import Says, said_after
from lightstride.training.top_k_kl import Teacher


@dataclass
class BlockTeacher(Says):
    """A teacher of few weights at a time."""

    source: WeightSource
    top_k: int
    """Likeliest tokens of a position that are told apart."""
    kept: SaidRows
    """What was said before."""
    tokens_NL: Tensor
    """All rows that may be asked for."""
    most: int
    """Tokens that pass the blocks together, unless one step asks for more."""
    now: Callable[[], float]
    """The clock that the training goes by."""
    waiting: dict[int, Teacher] = field(default_factory=dict)
    """What was said of rows that nobody has asked for yet."""
    coming: Iterable[int] = ()
    """Rows that are asked for next."""
    seconds_a_row: float = 0.0
    """Of the last reading."""

    @property
    def seconds_ahead(self) -> float:
        """Of this run, those spent on rows that nobody has asked for yet."""
        return len(self.waiting) * self.seconds_a_row

    def expect(self, coming: Iterable[int]) -> None:
        """Hear which rows are asked for next, in order, as far as that can be foreseen."""
        self.coming = coming

    def say(self, numbers: list[int], tokens_BL: Tensor) -> list[Teacher]:
        """Its distributions at all positions of rows, which are named by numbers."""
        pairs = zip(numbers, tokens_BL, strict=True)
        known = {n: self.waiting.pop(n, None) or self.kept.recall(n, row) for n, row in pairs}
        missing = [number for number, said in known.items() if said is None]
        if missing:
            start = self.now()
            rows = self.together(missing)
            said = dict(zip(rows, self.read(rows), strict=True))
            self.seconds_a_row = (self.now() - start) / len(rows)
            known |= {number: said.pop(number) for number in missing}
            self.waiting |= said
        return [said.to(self.source.device) for said in known.values() if said is not None]

    def together(self, missing: list[int]) -> list[int]:
        """These rows, and those that come next and are not known, as many as may pass together."""
        rows = dict.fromkeys(missing)
        for number in self.coming:
            if (len(rows) + 1) * self.tokens_NL.shape[1] > self.most:
                break
            if number not in self.waiting and not self.kept.path(number).exists():
                rows[number] = None
        return list(rows)

    def read(self, rows: list[int]) -> list[Teacher]:
        """What the model says of rows, which is kept too; all pass a block, then the next one."""
        source, found = self.source, []
        decoder = source.adapter.decoder(source.model)
        pieces = [Piece({"input_ids": self.tokens_NL[[number]].long()}) for number in rows]
        with (
            plain_products(source.model.config, source.device, self.tokens_NL.shape[1]),
            passed(source, pieces) as states,
            recorders(source.model, source.adapter) as stand_ins,
        ):
            for index, (number, piece) in enumerate(zip(rows, pieces, strict=True)):
                with with_output(stand_ins[-1], states[index]):
                    output = decoder(**piece.on(source.device), use_cache=False)
                said = said_after(source.model, output.last_hidden_state[0], self.top_k)
                found.append(said.to(torch.device("cpu")))
                self.kept.keep(number, self.tokens_NL[number], said)
        return found
