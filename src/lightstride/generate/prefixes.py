"""Keys and values of what was read before, for prompts that begin the same.

Tokens are kept in blocks of 16.  A block is known by its tokens and by the block before it, so what
several prompts share - a system prompt, the earlier turns of a chat - is kept once:

    "You are a helpful assistant ..." - "What is a fox?"   - "A fox is ..."
                                      \\ "What is a river?" - ...

A block is used after those behind it, so the one that was not used for longest has none behind it:
it is the one that goes first.

Shapes: N blocks of a chain, G KV heads, d size of a head; a buffer of the pool is (S, G, 16, d) for
S slots.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.generate.batch.cache import KvBuffer

BLOCK = 16
"""Tokens of a block."""
Name = tuple[int, tuple[int, ...]]
"""The number of the block before, 0 for none, and the block's own tokens."""


@dataclass(frozen=True)
class Block:
    """Where the entries of some tokens are kept."""

    number: int
    slot: int


class PrefixPool:
    """Blocks of entries, those used last; at most as many entries as it is bounded to."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[Name, Block] = OrderedDict()
        """Those not used for longest first."""
        self.buffers: list[Tensor] = []
        """One for every buffer of the cache, in its order."""
        self.free: list[int] = []
        self.most = 0
        """Most blocks."""
        self.num_made = 0

    @property
    def num_slots(self) -> int:
        """Blocks that there is memory for."""
        return len(self.buffers[0]) if self.buffers else 0

    @property
    def allocated_entries(self) -> int:
        """Entries that there is memory for, used or not."""
        return BLOCK * self.num_slots

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, used or not."""
        return sum(b.numel() * b.element_size() for b in self.buffers)

    def bound(self, entries: int) -> None:
        """Keep at most so many entries from now on; memory for more is given back."""
        self.most = max(0, entries) // BLOCK
        while len(self.blocks) > self.most:
            self.drop_oldest()
        if self.num_slots > self.most:
            slots = [block.slot for block in self.blocks.values()]
            places = {slot: place for place, slot in enumerate(slots)}
            for index, buffer in enumerate(self.buffers):
                self.buffers[index] = buffer[slots]
            self.free = []
            for name, block in self.blocks.items():
                self.blocks[name] = Block(block.number, places[block.slot])

    def drop_oldest(self) -> None:
        """Forget the block that was not used for longest."""
        _, block = self.blocks.popitem(last=False)
        self.free.append(block.slot)

    def find(self, tokens: Sequence[int]) -> list[Block]:
        """The longest chain of blocks that these tokens begin with; it counts as used."""
        chain: list[tuple[Name, Block]] = []
        number = 0
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            name = (number, tuple(tokens[start : start + BLOCK]))
            block = self.blocks.get(name)
            if block is None:
                break
            chain.append((name, block))
            number = block.number
        for name, _ in reversed(chain):
            self.blocks.move_to_end(name)
        return [block for _, block in chain]

    def load(self, chain: Sequence[Block], cache: KvBuffer, row: int) -> int:
        """Write a chain's entries over the first of a row; how many they are."""
        count = BLOCK * len(chain)
        cache.fit(count)
        slots_N = torch.tensor([block.slot for block in chain], device=self.buffers[0].device)
        for kept, buffer_RGWd in zip(self.buffers, cache.buffers, strict=True):
            buffer_RGWd[row, :, :count] = kept[slots_N].transpose(0, 1).flatten(1, 2)
        return count

    def keep(self, tokens: Sequence[int], cache: KvBuffer, row: int) -> None:
        """Keep the entries of a row, which begins with these tokens, as far as there is room."""
        chain = self.find(tokens)
        count = min(len(tokens) // BLOCK, self.most)
        if count <= len(chain):
            return
        slots = self.take_slots(count - len(chain), cache)
        columns = slice(BLOCK * len(chain), BLOCK * count)
        slots_N = torch.tensor(slots, device=self.buffers[0].device)
        for kept, buffer_RGWd in zip(self.buffers, cache.buffers, strict=True):
            kept[slots_N] = buffer_RGWd[row, :, columns].unflatten(1, (-1, BLOCK)).transpose(0, 1)
        number = chain[-1].number if chain else 0
        for place, slot in enumerate(slots, len(chain)):
            self.num_made += 1
            name = (number, tuple(tokens[BLOCK * place : BLOCK * (place + 1)]))
            self.blocks[name] = Block(self.num_made, slot)
            number = self.num_made
        self.find(tokens[: BLOCK * count])

    def take_slots(self, count: int, cache: KvBuffer) -> list[int]:
        """Slots for new blocks, those of the oldest ones where there is no more room.

        What was found just now is the newest, and goes last.
        """
        while len(self.blocks) + count > self.most:
            self.drop_oldest()
        if len(self.free) < count:
            before = self.num_slots
            after = min(self.most, max(before + count - len(self.free), 2 * before))
            self.buffers = self.buffers or [like.new_empty(0) for like in cache.buffers]
            for index, buffer_RGWd in enumerate(cache.buffers):
                self.buffers[index] = grown(self.buffers[index], buffer_RGWd, after)
            self.free.extend(range(before, after))
        return [self.free.pop() for _ in range(count)]


def grown(buffer: Tensor, like_RGWd: Tensor, num_slots: int) -> Tensor:
    """A buffer of so many slots, with what was in the smaller one."""
    _, num_heads, _, size = like_RGWd.shape
    larger = like_RGWd.new_empty(num_slots, num_heads, BLOCK, size)
    if len(buffer):
        larger[: len(buffer)] = buffer
    return larger
