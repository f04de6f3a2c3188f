"""A supernet: a folder that holds every site of a model at several shapes, refitted.

It is built in one pass over the model, block by block: at each site all shapes are cut and
refitted from one Gram matrix, stored, and the stream goes on with a stand-in for the shape that
the search will choose ("error accumulation").  With levels e of a site that lack shares S_e of
its parameters, the stand-in is

    none         the dense site
    median       the level at the centre of the round
    expectation  X = sum_e (1 - S_e) X_e / sum_e (1 - S_e): as the site is linear in its output
                 weights, one run with their average of these weights

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), section 3.3, eq. 5.  We differ: the
accumulation is really on, attention is cut before the FFN of its block is measured, and only
output weights and kept units are stored.

The folder is built under another name and renamed when whole.  A build that was stopped goes
on at the first site without a file: finished ones are read back, not measured again, and the
stream sees weights as stored, so the result is the same to the bit.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightstride.config.prune import Accumulation
from lightstride.distributed import NUM_SHARDS, barrier, rank
from lightstride.errors import OutputError, WorkError
from lightstride.files import rename_folder, write_json
from lightstride.files.read import read_json
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.opening.source import WeightSource
from lightstride.models.shapes import Geometry, Kept, Shape, Site, keep_all, shape_text
from lightstride.prune.cut.refit import CutSite, kept_inputs
from lightstride.prune.cut.site_levels import CutSettings, site_levels
from lightstride.prune.cut.statistics import SiteStatistics, stream_blocks
from lightstride.prune.cut.supernet_files import (
    Json,
    SiteEntry,
    read_entry,
    read_level,
    rounded,
    write_site,
)

VERSION = 2
INDEX = "index.json"
STARTED = "started.json"


def supernet_bytes(geometry: Geometry, shapes: Mapping[Site, Sequence[Shape]]) -> int:
    """Disk of a supernet: output weights in bf16; levels as wide as the dense site hold none."""
    widths = sum(
        geometry.num_inputs(shape)
        for site, levels in shapes.items()
        for shape in levels
        if shape != geometry.shape(site)
    )
    return 2 * geometry.hidden_size * widths


@dataclass(frozen=True)
class Supernet:
    """A finished supernet: shapes and losses at hand, weights read when asked for."""

    folder: Path
    entries: Mapping[Site, SiteEntry]
    hidden_size: int
    dense: Mapping[Site, Tensor]
    """Output weights of the dense model, which its dense levels have."""
    settings: Mapping[str, object]
    """Settings of the build."""

    @classmethod
    def open(cls, folder: Path, source: WeightSource) -> "Supernet":
        """The supernet in a folder, made from this (dense) model; raises WorkError if it is not."""
        document = read_index(folder)
        if document["model"] != source.identity():
            raise WorkError(f"supernet {folder} was made from another model; give another folder")
        sites, settings = document["sites"], document["settings"]
        assert isinstance(sites, dict)
        assert isinstance(settings, dict)
        parsed = {Site.parse(name): entry for name, entry in sites.items()}
        entries = {site: SiteEntry.from_json(site, entry) for site, entry in parsed.items()}
        return cls(folder, entries, source.geometry.hidden_size, source.dense_outputs(), settings)

    def shapes(self, site: Site) -> tuple[Shape, ...]:
        """Shapes a site is there in."""
        return tuple(self.entries[site].levels)

    def loss(self, site: Site, shape: Shape) -> float:
        """Squared error that a level adds at its site (`CutSite.loss`)."""
        return self.entries[site].levels[shape].loss

    def kept(self, site: Site, shape: Shape) -> Kept:
        """The units a level keeps."""
        return self.entries[site].levels[shape].kept

    def load(self, site: Site, shape: Shape) -> CutSite:
        """A level with its weights, checked; raises WorkError naming the file if damaged."""
        return read_level(self.folder, self.entries[site], shape, self.hidden_size, self.dense)


class ChosenLevels(Mapping[Site, CutSite]):
    """One level of every site, with its weights read when it is asked for."""

    def __init__(self, supernet: Supernet, shapes: Mapping[Site, Shape]) -> None:
        self.supernet, self.shapes = supernet, shapes

    @property
    def kept(self) -> dict[Site, Kept]:
        """The units that every level keeps."""
        return {site: self.supernet.kept(site, shape) for site, shape in self.shapes.items()}

    def __getitem__(self, site: Site) -> CutSite:
        return self.supernet.load(site, self.shapes[site])

    def __iter__(self) -> Iterator[Site]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def index_hash(document: Json) -> str:
    """Hash of an index without its own hash."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_index(folder: Path) -> Json:
    """The index of a supernet; raises WorkError unless it is whole and of this version."""
    path = folder / INDEX
    if not path.exists():
        raise WorkError(f"no supernet in {folder}: {INDEX} is missing")
    try:
        document: Json = read_json(path, Json, WorkError)
        version, expected = document["version"], document["sha256"]
    except (WorkError, KeyError) as error:
        raise WorkError(f"supernet file {path} is damaged: delete the folder {folder}") from error
    if version != VERSION:
        raise WorkError(f"supernet {folder} is of version {version}; this program reads {VERSION}")
    if expected != index_hash(document):
        raise WorkError(f"supernet file {path} is damaged: delete the folder {folder}")
    return document


@dataclass(frozen=True)
class SupernetBuilder:
    """Prunes, stores and stands in for one site after the other."""

    folder: Path
    """Folder of the site files while the supernet is not whole."""
    geometry: Geometry
    dense: Mapping[Site, Tensor]
    shapes: Mapping[Site, Sequence[Shape]]
    centre: Mapping[Site, Shape]
    accumulation: Accumulation
    settings: CutSettings

    def cut_and_store(self, site: Site, statistics: SiteStatistics) -> CutSite | None:
        """Cut a site to all its shapes and store them; the stand-in for the sites that follow."""
        dense = self.geometry.shape(site)
        dense_OI = statistics.weights[OUTPUT_NAME[site.kind]].to(statistics.gram.device)
        cut = site_levels(site, statistics, self.shapes[site], self.geometry, self.settings)
        untouched = CutSite(keep_all(dense), dense_OI.float(), 0.0)
        levels: list[CutSite] = []
        while cut:  # no level is there twice for long
            level = cut.pop(0)
            levels.append(untouched if level.kept.shape == dense else rounded(level, dense_OI))
        write_site(self.folder, site, levels, dense_OI, statistics.tokens_E)
        return self.stand_in(site, {level.kept.shape: level for level in levels})

    def stand_in(self, site: Site, levels: Mapping[Shape, CutSite]) -> CutSite | None:
        """The cut site on which the following sites are measured; None is the dense site."""
        if self.accumulation == "none":
            return None
        if self.accumulation == "median":
            return levels[self.centre[site]]
        dense = self.geometry.shape(site)
        sizes = [self.geometry.parameters(shape) for shape in levels]
        total_OI = torch.zeros(self.geometry.hidden_size, self.geometry.num_inputs(dense))
        for size, level in zip(sizes, levels.values(), strict=True):
            assert level.bias_O is None
            columns_K = kept_inputs(level.kept, dense, self.geometry.head_dim)
            total_OI[:, columns_K] += size / sum(sizes) * level.output_OK.to(total_OI)
        return CutSite(keep_all(dense), total_OI, 0.0)


class FinishedSites(Mapping[Site, CutSite | None]):
    """The sites whose files are there, and the stand-in of each."""

    def __init__(self, builder: SupernetBuilder) -> None:
        self.builder = builder
        found = {site: read_entry(builder.folder, site) for site in builder.shapes}
        self.entries = {
            site: entry
            for site, entry in found.items()
            if entry is not None and set(entry.levels) == set(builder.shapes[site])
        }

    def __getitem__(self, site: Site) -> CutSite | None:
        entry, builder = self.entries[site], self.builder
        shapes = entry.levels
        if builder.accumulation == "none":
            return None
        if builder.accumulation == "median":
            shapes = {builder.centre[site]: entry.levels[builder.centre[site]]}
        size = builder.geometry.hidden_size
        levels = {s: read_level(builder.folder, entry, s, size, builder.dense) for s in shapes}
        return builder.stand_in(site, levels)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def description_of(
    source: WeightSource,
    tokens_NL: Tensor,
    builder: SupernetBuilder,
    *,
    num_shards: int,
    weigh_tokens: bool,
) -> Json:
    """Everything a supernet's contents depend on."""
    tokens = tokens_NL.contiguous().cpu().numpy().tobytes()
    shapes = {str(s): [shape_text(shape) for shape in some] for s, some in builder.shapes.items()}
    return {
        "version": VERSION,
        "model": source.identity(),
        "settings": {
            "num_windows": tokens_NL.shape[0],
            "window": tokens_NL.shape[1],
            "tokens": hashlib.sha256(tokens).hexdigest(),
            "num_shards": num_shards,
            "dtype": str(source.model.dtype).removeprefix("torch."),
            "accumulation": builder.accumulation,
            "relative": weigh_tokens,
            "correction": builder.settings.correction,
            "damping": builder.settings.damping,
            "shapes": shapes,
            "centre": {str(site): shape_text(shape) for site, shape in builder.centre.items()},
            **({"channel_step": step} if (step := builder.settings.channel_step) > 1 else {}),
        },
    }


def check_same(folder: Path, there: Json, wanted: Json) -> None:
    """Raise WorkError, naming the differences, unless a folder's description is the wanted one."""
    flat = []
    for document in (there, wanted):
        settings = document.get("settings")
        assert isinstance(settings, dict)
        flat.append({"version": document.get("version"), "model": document["model"], **settings})
    different = [key for key in flat[1] if flat[0].get(key) != flat[1][key]]
    if different:
        raise WorkError(
            f"{folder} belongs to another run: its {', '.join(different)} differ; "
            "give another folder or delete it"
        )


def open_partial(folder: Path, partial: Path, description: Json) -> None:
    """Make ready the folder of an unfinished supernet, or find it as it was left."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty and holds no supernet; give an empty folder")
    for half in partial.glob(".*"):
        half.unlink()
    if not (partial / STARTED).exists():
        write_json(partial / STARTED, description)
    damaged = WorkError(f"{partial / STARTED} is damaged: delete the folder {partial}")
    try:
        there = read_json(partial / STARTED, Json, WorkError)
    except WorkError as error:
        raise damaged from error
    try:
        check_same(partial, there, description)
    except (AssertionError, KeyError) as error:
        raise damaged from error


def publish(folder: Path, partial: Path, description: Json, sites: Iterable[Site]) -> None:
    """Write the index of a whole supernet and give its folder its name."""
    entries: Json = {}
    for site in sites:
        entry = read_entry(partial, site)
        assert entry is not None
        entries[str(site)] = entry.to_json()
    document: Json = {**description, "sites": entries}
    write_json(partial / INDEX, document | {"sha256": index_hash(document)})
    (partial / STARTED).unlink()
    rename_folder(partial, folder)


def build_supernet(
    source: WeightSource,
    tokens_NL: Tensor,
    shapes: Mapping[Site, Sequence[Shape]],
    centre: Mapping[Site, Shape],
    folder: Path,
    *,
    accumulation: Accumulation = "median",
    weigh_tokens: bool = True,
    correction: float = 0.0,
    damping: float = 0.01,
    channel_step: int = 1,
    batch_size: int = 8,
    num_shards: int = NUM_SHARDS,
    spill: Path | None = None,
    progress: bool = False,
) -> Supernet:
    """Build the supernet in `folder`, or the sites that are missing, or open it if it is whole.

    `centre` names a shape of every site, the stand-in with accumulation "median".  `weigh_tokens`
    weighs tokens, and `correction` says what part of the drift each site undoes (alpha), both as
    in `statistics.py`.  All ranks call this; rank 0 cuts and writes.  Raises WorkError if the
    folder holds another supernet.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    geometry, dense = source.geometry, source.dense_outputs()
    settings = CutSettings(
        correction=correction, damping=damping, channel_step=channel_step, dtype=torch.bfloat16
    )
    builder = SupernetBuilder(partial, geometry, dense, shapes, centre, accumulation, settings)
    description = description_of(
        source, tokens_NL, builder, num_shards=num_shards, weigh_tokens=weigh_tokens
    )
    if (folder / INDEX).exists():
        check_same(folder, read_index(folder), description)
        return Supernet.open(folder, source)
    if rank() == 0:
        open_partial(folder, partial, description)
    barrier()
    stream_blocks(
        source,
        tokens_NL,
        builder.cut_and_store,
        finished=FinishedSites(builder) if rank() == 0 else {},
        weigh_tokens=weigh_tokens,
        drift=correction != 0 and accumulation != "none",
        batch_size=batch_size,
        num_shards=num_shards,
        spill=spill,
        progress=progress,
    )
    if rank() == 0:
        publish(folder, partial, description, shapes)
    barrier()
    return Supernet.open(folder, source)
