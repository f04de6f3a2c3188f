"""Many processes that give exactly what one gives: shards, sums in a fixed order, messages.

Work is cut into a fixed number of *shards*, whatever the number of ranks.  What is summed
over tokens is summed for each shard alone, and the shards' sums are added along one fixed
binary tree, so that the total has the same bits for 1, 2 or 3 ranks (given the same device
and the same number of threads for each rank).  A rank holds at most a logarithm of the
shards at once: two finished neighbours of the tree are added as soon as both are there.

Processes are started by `torchrun`; without it every function works for one process alone.
Messages travel as JSON or as plain tensors, never pickled.
"""

import json
import os
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightstride.errors import ConfigError

T = TypeVar("T")

NUM_SHARDS = 8
"""Into how many shards work is cut unless the caller says otherwise: also the most ranks."""


def init() -> None:
    """Join the processes that `torchrun` started; nothing happens without it."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)


def close() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: T, root: int = 0) -> T:
    """The value of `root`, on every rank, after a trip through JSON: tuples come back as lists."""
    message = json.dumps(value).encode() if rank() == root else b""
    if world_size() == 1:
        alone: T = json.loads(message)
        return alone
    size = torch.tensor([len(message)])
    dist.broadcast(size, root)
    data = torch.empty(int(size), dtype=torch.uint8)
    if message:
        data = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    dist.broadcast(data, root)
    received: T = json.loads(data.numpy().tobytes())
    return received


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank; travels as JSON."""
    return [broadcast_object(value, root) for root in range(world_size())]


def broadcast_tensor(tensor: Tensor, root: int = 0) -> Tensor:
    """The tensor of `root`, on every rank; elsewhere `tensor` only gives shape and type."""
    if world_size() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, root)
    return tensor


def pieces(whole: range, num_pieces: int) -> list[range]:
    """A range cut into consecutive ranges whose lengths differ by one at most, longer first."""
    size, longer = divmod(len(whole), num_pieces)
    ranges = []
    start = whole.start
    for index in range(num_pieces):
        stop = start + size + (index < longer)
        ranges.append(range(start, stop))
        start = stop
    return ranges


def owned_shards(num_shards: int, of_rank: int | None = None) -> range:
    """The consecutive shards that a rank (this one unless said otherwise) works on."""
    if world_size() > num_shards:
        raise ConfigError(f"{world_size()} processes for {num_shards} shards; at most one each")
    return pieces(range(num_shards), world_size())[rank() if of_rank is None else of_rank]


@dataclass
class TreeSum:
    """Adds the tensors of shards along a fixed binary tree, whoever computed them.

    Node `(level, index)` covers the shards from `index << level` on, `1 << level` of them.
    Tensors that are given belong to the sum afterwards: they are added in place.
    """

    num_shards: int
    pending: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """Finished parts that wait for their neighbour, from left to right."""

    def add(self, shard: int, tensor: Tensor) -> None:
        """Take the tensor of one shard; a rank gives its shards in ascending order."""
        self._merge(0, shard, tensor)

    def _merge(self, level: int, index: int, tensor: Tensor) -> None:
        while self.pending and index % 2 == 1 and self.pending[-1][:2] == (level, index - 1):
            tensor = self.pending.pop()[2].add_(tensor)
            level, index = level + 1, index // 2
        self.pending.append((level, index, tensor))

    def total(self) -> Tensor | None:
        """The sum over the shards of all ranks, on rank 0; None on the others."""
        if rank() > 0:
            for _, _, tensor in self.pending:
                dist.send(tensor, 0)
            self.pending.clear()
            return None
        for sender in range(1, world_size()):
            for level, index in tree_nodes(owned_shards(self.num_shards, sender)):
                received = torch.empty_like(self.pending[0][2])
                dist.recv(received, sender)
                self._merge(level, index, received)
        total = self.pending.pop()[2]
        while self.pending:
            total = self.pending.pop()[2].add_(total)
        return total


def tree_nodes(shards: range) -> list[tuple[int, int]]:
    """The nodes `(level, index)` that are left when these shards have been added."""
    nodes: list[tuple[int, int]] = []
    for shard in shards:
        level, index = 0, shard
        while nodes and index % 2 == 1 and nodes[-1] == (level, index - 1):
            nodes.pop()
            level, index = level + 1, index // 2
        nodes.append((level, index))
    return nodes
