"""The files of a supernet: one a site, with the output weights of all its levels.

A file is written under a temporary name and renamed, so one that has its name is whole.  It
holds output weights in bf16 only: all other weights are slices of the dense model's, and a
level whose output weights are the dense ones holds nothing.  Its header, and later the
supernet's index, say for every level the shape, the kept units, the loss and the hash of
each tensor; a tensor is checked against its hash when it is read.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lightstride.errors import WorkError
from lightstride.files import whole_file
from lightstride.files.read import file_size, open_tensors, parse_json
from lightstride.models.shapes import (
    Kept,
    Shape,
    Site,
    kept_json,
    parse_kept,
    parse_shape,
    shape_text,
)
from lightstride.models.tensor_bytes import bytes_of
from lightstride.prune.cut.refit import CutSite

Json = dict[str, object]


@dataclass(frozen=True)
class LevelEntry:
    """A level without its weights."""

    kept: Kept
    loss: float
    hashes: Mapping[str, str]
    """SHA-256 of its stored tensors: `output` and `bias`, as far as there are."""

    def to_json(self) -> Json:
        """A JSON object that `from_json` reads back."""
        shape = shape_text(self.kept.shape)
        hashes = dict(self.hashes)
        return {"shape": shape, "kept": kept_json(self.kept), "loss": self.loss, "sha256": hashes}

    @classmethod
    def from_json(cls, entry: Json) -> "LevelEntry":
        """The entry that `to_json` wrote."""
        kept, loss, hashes = parse_kept(entry["kept"]), entry["loss"], entry["sha256"]
        assert isinstance(loss, float)
        assert math.isfinite(loss)
        assert isinstance(hashes, dict)
        assert set(hashes) <= {"output", "bias"}
        assert isinstance(entry["shape"], str)
        assert kept.shape == parse_shape(entry["shape"])
        return cls(kept, loss, hashes)


@dataclass(frozen=True)
class SiteEntry:
    """A site's levels without their weights."""

    site: Site
    levels: Mapping[Shape, LevelEntry]
    header: str = ""
    """SHA-256 of its file's header."""
    tokens: tuple[int, ...] = ()
    """Tokens that each expert was sent while it was measured; none without experts."""

    @property
    def file(self) -> str:
        """Name of the site's file in the folder."""
        return f"{self.site}.safetensors"

    def to_json(self) -> Json:
        """A JSON object that `from_json` reads back."""
        levels = [level.to_json() for level in self.levels.values()]
        sent = {"tokens": list(self.tokens)} if self.tokens else {}
        return {"file": self.file, "header": self.header, "levels": levels, **sent}

    @classmethod
    def from_json(cls, site: Site, entry: Json) -> "SiteEntry":
        """The entry that `to_json` wrote."""
        header, listed, tokens = entry["header"], entry["levels"], entry.get("tokens", [])
        assert isinstance(header, str)
        assert isinstance(listed, list)
        assert isinstance(tokens, list)
        assert all(isinstance(count, int) for count in tokens)
        levels = [LevelEntry.from_json(level) for level in listed]
        return cls(site, {level.kept.shape: level for level in levels}, header, tuple(tokens))


def is_dense(level: CutSite, dense_OI: Tensor) -> bool:
    """True if a level has the dense output weights."""
    return level.output_OK.shape == dense_OI.shape and bool((level.output_OK == dense_OI).all())


def rounded(level: CutSite, dense_OI: Tensor) -> CutSite:
    """The level as it will be read back: weights rounded to bf16; a dense level is kept exact."""
    if is_dense(level, dense_OI):
        return level
    bias_O = None if level.bias_O is None else level.bias_O.bfloat16().float()
    return CutSite(level.kept, level.output_OK.bfloat16(), level.loss, bias_O)


def write_site(
    folder: Path,
    site: Site,
    levels: Sequence[CutSite],
    dense_OI: Tensor,
    tokens_E: Tensor | None = None,
) -> SiteEntry:
    """Write all levels of a site; those that equal the dense weights are only listed."""
    tensors: dict[str, Tensor] = {}
    entries: dict[Shape, LevelEntry] = {}
    for level in levels:
        parts: dict[str, Tensor] = {}
        if not is_dense(level, dense_OI):
            parts["output"] = level.output_OK.bfloat16().cpu().contiguous()
        if level.bias_O is not None:
            parts["bias"] = level.bias_O.bfloat16().cpu()
        shape = level.kept.shape
        hashes = {part: tensor_hash(tensor) for part, tensor in parts.items()}
        entries[shape] = LevelEntry(level.kept, level.loss, hashes)
        tensors |= {tensor_name(shape, part): tensor for part, tensor in parts.items()}
    sent = () if tokens_E is None else tuple(int(count) for count in tokens_E.tolist())
    entry = SiteEntry(site, entries, tokens=sent)
    path = folder / entry.file
    with whole_file(path) as partial:
        save_file(tensors, partial, {"levels": json.dumps(entry.to_json())})
    return replace(entry, header=header_digest(path))


def read_entry(folder: Path, site: Site) -> SiteEntry | None:
    """The header of a site's file; None if there is no whole file."""
    path = folder / SiteEntry(site, {}).file
    if not path.exists():
        return None
    try:
        with open_tensors(path, WorkError) as file:
            text = file.metadata()["levels"]
        entry = SiteEntry.from_json(site, parse_json(text, Json, str(path), WorkError))
        return replace(entry, header=header_digest(path))
    except (OSError, SafetensorError, AssertionError, KeyError, TypeError, ValueError, WorkError):
        return None


def read_level(
    folder: Path, entry: SiteEntry, shape: Shape, num_outputs: int, dense: Mapping[Site, Tensor]
) -> CutSite:
    """One level, its weights checked against their hashes; raises WorkError if they differ.

    A level that holds no output weights has the dense ones.
    """
    level = entry.levels[shape]
    path = folder / entry.file
    tensors: dict[str, Tensor] = {}
    try:
        if header_digest(path) != entry.header:
            raise damaged(path, entry.site, shape)
        with open_tensors(path, WorkError) as file:
            for part, expected in level.hashes.items():
                tensors[part] = file.get_tensor(tensor_name(shape, part))
                if tensor_hash(tensors[part]) != expected:
                    raise damaged(path, entry.site, shape)
    except (OSError, SafetensorError) as error:
        raise damaged(path, entry.site, shape) from error
    for part, tensor in tensors.items():
        fits = tensor.dim() == {"output": 2, "bias": 1}[part] and len(tensor) == num_outputs
        if tensor.dtype != torch.bfloat16 or not fits:
            raise damaged(path, entry.site, shape)
    bias_O = tensors["bias"].float() if "bias" in tensors else None
    output_OK = tensors["output"] if "output" in tensors else dense[entry.site]
    return CutSite(level.kept, output_OK.float(), level.loss, bias_O)


def damaged(path: Path, site: Site, shape: Shape) -> WorkError:
    """The error that names a file whose contents differ from their hashes."""
    return WorkError(
        f"supernet file {path} is damaged: site {site} at {shape_text(shape)} does not match its "
        "hash; delete the supernet's folder to build it again"
    )


def tensor_name(shape: Shape, part: str) -> str:
    """Name of a level's tensor in its site's file."""
    return f"{shape_text(shape)}.{part}"


def header_digest(path: Path) -> str:
    """SHA-256 of the header of a safetensors file, its length included; no more than there is."""
    size = file_size(path, WorkError)
    with path.open("rb") as file:
        length = file.read(8)
        count = min(int.from_bytes(length, "little"), size)
        return hashlib.sha256(length + file.read(count)).hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(bytes_of(tensor)).hexdigest()
