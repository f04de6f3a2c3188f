"""What the dense model said of rows, kept on disk up to a limit: a file a row, whole or not there.

A file names, in its header, the tokens that it is about and its own hash; one that is of other
tokens, or damaged, counts as not there.
"""

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lightstride.errors import WorkError
from lightstride.files import whole_file
from lightstride.files.read import open_tensors
from lightstride.training.top_k_kl import Teacher

PARTS = ("log_probability_NK", "token_NK", "log_rest_N")


class SaidRows:
    """Rows that were read, by their numbers."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        files = folder.glob("*.safetensors") if folder.is_dir() else ()
        self.kept_bytes = sum(file.stat().st_size for file in files)

    def path(self, number: int) -> Path:
        """Where a row is kept."""
        return self.folder / f"{number}.safetensors"

    def recall(self, number: int, tokens_L: Tensor) -> Teacher | None:
        """What was said of a row; None where that is not known."""
        try:
            with open_tensors(self.path(number), WorkError) as file:
                header = file.metadata() or {}
                parts = {name: file.get_tensor(name) for name in PARTS}
        except (OSError, SafetensorError, WorkError):
            return None
        return Teacher(**parts) if header.get("sha256") == row_hash(tokens_L, parts) else None

    def keep(self, number: int, tokens_L: Tensor, said: Teacher) -> None:
        """Write what was said of a row, unless that is too much; OutputError for a full disk."""
        parts = {name: getattr(said, name).cpu().contiguous() for name in PARTS}
        size = sum(part.numel() * part.element_size() for part in parts.values())
        if self.kept_bytes + size <= self.limit_bytes:
            with whole_file(self.path(number)) as partial:
                save_file(parts, partial, {"sha256": row_hash(tokens_L, parts)})
            self.kept_bytes += self.path(number).stat().st_size

    def forget(self) -> None:
        """Delete all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def row_hash(tokens_L: Tensor, parts: dict[str, Tensor]) -> str:
    """SHA-256 over a row's tokens and what was said of it."""
    found = hashlib.sha256(tokens_L.to(torch.int64).numpy().tobytes())
    for name in PARTS:
        found.update(parts[name].numpy().tobytes())
    return found.hexdigest()
