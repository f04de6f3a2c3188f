"""Single tensors out of a folder's safetensors files, when their turn comes.

Tensors are read, not mapped: a file that has lost its end since it was opened is one line then,
where a mapped one would end the process, and what was read is memory that can be given back.
Everything goes through the gate (`gate.py`) first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightstride.errors import ModelError
from lightstride.models.opening.gate import check_weight_files, read_header, weight_files
from lightstride.models.tensor_bytes import FLOAT_TYPES, fill


@dataclass(frozen=True)
class Place:
    """Where a tensor is."""

    path: Path
    file_bytes: int
    """Size of the file when it was opened."""
    start: int
    """First byte in the file."""
    shape: torch.Size
    dtype: torch.dtype


class Shards:
    """The tensors of a folder, by name."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """All tensors of a folder; raises ModelError unless its files are sound."""
        check_weight_files(folder)
        places: dict[str, Place] = {}
        for path in weight_files(folder):
            with path.open("rb") as file:
                data = 8 + int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            for name, entry in read_header(path).items():
                if entry.dtype in FLOAT_TYPES:
                    start = data + entry.data_offsets[0]
                    shape, dtype = torch.Size(entry.shape), FLOAT_TYPES[entry.dtype]
                    places[name] = Place(path, size, start, shape, dtype)
        return cls(places)

    def read(self, name: str) -> Tensor:
        """A tensor in the type of its file; ModelError where the file is no longer what it was."""
        place = self.places[name]
        values = torch.empty(place.shape, dtype=place.dtype)
        self.fill(place, place.start, values.flatten())
        return values

    def sample(self, name: str, picked_N: Tensor) -> Tensor:
        """Values at these places of a flattened tensor, (N,)."""
        place = self.places[name]
        values_N = torch.empty(len(picked_N), dtype=place.dtype)
        for index, where in enumerate(picked_N.tolist()):
            start = place.start + where * place.dtype.itemsize
            self.fill(place, start, values_N[index : index + 1])
        return values_N

    def fill(self, place: Place, start: int, flat_N: Tensor) -> None:
        """Read bytes from `start` on into a flat tensor."""
        try:
            with place.path.open("rb", buffering=0) as file:
                is_whole = fill(flat_N, file, start)
        except OSError as error:
            raise ModelError(
                f"cannot read {place.path}: {error.strerror}; put it back, and go on with --resume"
            ) from error
        if not is_whole:
            raise ModelError(
                f"{place.path} is truncated: it had {place.file_bytes:,} bytes when it was "
                "opened; put it back, and go on with --resume"
            )
