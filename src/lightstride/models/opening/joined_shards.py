"""Tensors that a folder's files hold in parts, read and sampled as if they were whole.

Published files have a matrix for each expert; opened, those of all experts are one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightstride.errors import ModelError
from lightstride.models.families.adapter import Parts
from lightstride.models.opening.shards import Shards


class JoinedShards(Shards):
    """Shards, of which some are parts of one tensor: all of one shape, joined along a dimension."""

    def __init__(self, shards: Shards, joined: Mapping[str, Parts]) -> None:
        taken = {part for names, _ in joined.values() for part in names}
        places = {name: place for name, place in shards.places.items() if name not in taken}
        for name, (names, dim) in joined.items():
            first = shards.places[names[0]]
            shape = list(first.shape)
            shape[dim] = sum(shards.places[part].shape[dim] for part in names)
            places[name] = replace(first, shape=torch.Size(shape))
        super().__init__(places)
        self.shards, self.joined = shards, joined

    def read(self, name: str) -> Tensor:
        if name not in self.joined:
            return super().read(name)
        names, dim = self.joined[name]
        return torch.cat([self.shards.read(part) for part in names], dim)

    def sample(self, name: str, picked_N: Tensor) -> Tensor:
        if name not in self.joined:
            return super().sample(name, picked_N)
        names, dim = self.joined[name]
        rows, columns = self.shards.places[names[0]].shape
        width = self.places[name].shape[1]
        values_N = torch.empty(len(picked_N), dtype=self.places[name].dtype)
        for index, where in enumerate(picked_N.tolist()):
            row, column = divmod(where, width)
            number = column // columns if dim else row // rows
            own = torch.tensor([(row % rows) * columns + column % columns])
            values_N[index] = self.shards.sample(names[number], own)[0]
        return values_N


def joined_shards(name: str, shards: Shards, wanted: Mapping[str, Parts | None]) -> Shards:
    """The shards with every parameter that they hold in parts; ModelError where a part lacks.

    `wanted` has the parts of each parameter, if it may have some.
    """
    joined = {
        own: parts
        for own, parts in wanted.items()
        if parts and any(part in shards.places for part in parts[0])
    }
    check_parts(name, shards, joined.values())
    return JoinedShards(shards, joined) if joined else shards


def check_parts(name: str, shards: Shards, joined: Iterable[Parts]) -> None:
    """Raise ModelError where one of several parts is not there, or of another shape."""
    for parts, _ in joined:
        for part in parts:
            if part not in shards.places:
                raise ModelError(f"{name} lacks the weights {part}")
        shapes = {shards.places[part].shape for part in parts}
        if len(shapes) > 1 or len(next(iter(shapes))) != 2:
            raise ModelError(f"{name} has experts of several shapes, first in {parts[0]}")
