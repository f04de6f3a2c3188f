"""Many texts through a model block by block: every block is needed once, for all of them.

Texts come in pieces, rows of tokens that run together.  All of them pass a block before the next
one is needed, so that a model whose weights lie on disk is read once; what is kept between two
blocks is hidden states, in memory or in a file.  A piece may go on from the one before it: its
rows see keys and values of that piece's rows, which are there for one block at a time.

The same computation as the model's own forward of each piece, with a cache where one goes on.

Shapes: B rows of L tokens in a piece, R rows that go on, T tokens of all pieces, D hidden size.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from lightstride.models.activations import Rows, activation_store
from lightstride.models.block_calls import Call, Recorder, recorders
from lightstride.models.opening.source import WeightSource
from lightstride.progress import Bar


@dataclass(frozen=True)
class Piece:
    """Rows that run together."""

    arguments: Mapping[str, Tensor]
    """What the decoder is called with: `input_ids` (B, L), and if need be mask and positions."""
    starts_R: Tensor | None = None
    """For one that goes on: what rows of the last piece that does not are before its own."""
    goes_on: bool = False
    """Whether pieces that follow go on from this one."""

    @property
    def tokens(self) -> Tensor:
        """Its tokens (B, L)."""
        return self.arguments["input_ids"]

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The arguments, on a device."""
        return {name: values.to(device) for name, values in self.arguments.items()}


@dataclass(frozen=True)
class Spill:
    """A folder for activations that are more than so many bytes."""

    folder: Path
    room: int = 0

    def place(self, num_bytes: int) -> Path | None:
        """The folder, or None for what has room in memory."""
        return self.folder if num_bytes > self.room else None


class States:
    """The hidden states of every piece (B, L, D), between two blocks."""

    def __init__(self, pieces: Sequence[Piece], rows_TD: Rows, device: torch.device) -> None:
        self.shapes = [piece.tokens.shape for piece in pieces]
        self.ends = list(accumulate(shape.numel() for shape in self.shapes))
        self.rows_TD, self.device = rows_TD, device

    def rows(self, number: int) -> slice:
        """Where a piece is."""
        return slice(self.ends[number] - self.shapes[number].numel(), self.ends[number])

    def __getitem__(self, number: int) -> Tensor:
        hidden_ND = self.rows_TD[self.rows(number)].to(self.device)
        return hidden_ND.view(*self.shapes[number], -1)

    def __setitem__(self, number: int, hidden_BLD: Tensor) -> None:
        self.rows_TD[self.rows(number)] = hidden_BLD.flatten(0, 1)


@contextmanager
def passed(
    source: WeightSource, pieces: Sequence[Piece], spill: Spill | None = None, *, title: str = ""
) -> Iterator[States]:
    """Bring all pieces to the end of the last block; inside, what makes logits is there too.

    With a title, a bar of that name counts the blocks.
    """
    geometry = source.geometry
    tokens = sum(piece.tokens.numel() for piece in pieces)
    size = tokens * geometry.hidden_size * source.model.dtype.itemsize
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        shelf = stack.enter_context(activation_store(spill.place(size) if spill else None))
        rows_TD = shelf.room(tokens, geometry.hidden_size, dtype=source.model.dtype)
        states = States(pieces, rows_TD, source.device)
        embed_pieces(source, pieces, states)
        bar = Bar(total=geometry.num_blocks, desc=title, disable=not title)
        with bar, source.outside_blocks(), source.blocks() as blocks:
            for index, block in enumerate(blocks):
                pass_block(source, index, block, pieces, states)
                bar.update()
        stack.enter_context(source.head())
        yield states


def embed_pieces(source: WeightSource, pieces: Sequence[Piece], states: States) -> None:
    """Set the hidden states to the first block's inputs."""
    decoder = source.adapter.decoder(source.model)
    with source.embedding(), recorders(source.model, source.adapter) as stand_ins:
        for number, piece in enumerate(pieces):
            decoder(**piece.on(source.device), use_cache=False)
            states[number] = stand_ins[0].hidden_BLD


def pass_block(
    source: WeightSource, index: int, block: nn.Module, pieces: Sequence[Piece], states: States
) -> None:
    """Bring all pieces to the end of one block."""
    cache: Cache | None = None
    with recorders(source.model, source.adapter) as stand_ins:
        for number, piece in enumerate(pieces):
            before = None
            if piece.starts_R is not None:
                assert cache is not None, "no piece to go on from"
                before = copy_rows(cache, piece.starts_R.to(source.device))
            elif piece.goes_on:
                before = cache = DynamicCache(config=source.model.config)
            call = block_call(source, index, stand_ins, piece, before)
            states[number] = block(states[number], *call.args, **call.kwargs)
            if piece.goes_on and before is not None:
                note_length(before, index, len(stand_ins), piece.tokens)


def block_call(
    source: WeightSource,
    index: int,
    stand_ins: Sequence[Recorder],
    piece: Piece,
    cache: Cache | None,
) -> Call:
    """How the decoder would call this block for a piece."""
    decoder = source.adapter.decoder(source.model)
    decoder(**piece.on(source.device), past_key_values=cache, use_cache=cache is not None)
    return stand_ins[index].call


def note_length(cache: Cache, index: int, num_blocks: int, tokens_BL: Tensor) -> None:
    """Let all blocks but this one have entries, of no meaning: masks are made by any's length."""
    blank = torch.zeros(len(tokens_BL), 1, tokens_BL.shape[1], 1, device=tokens_BL.device)
    for block in range(num_blocks):
        if block != index:
            cache.update(blank, blank, block)


def copy_rows(cache: Cache, rows_R: Tensor) -> Cache:
    """A cache whose rows are copies of these rows of another, which is left as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    copied.batch_select_indices(rows_R)
    return copied
