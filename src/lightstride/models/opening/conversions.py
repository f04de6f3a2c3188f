"""Converted copies of models, kept in the cache folder: checked, limited in size, listed.

    CACHE/converted/NAME-KEY/                   a checkpoint folder as any other
    CACHE/converted/NAME-KEY/conversion.json    what it was made from, and the hashes of its files

KEY is the hash of the source's bytes and of the converter's version, so one file at two places is
one copy.  A source that was seen before is known again by path, size and time of change; only
another is hashed.  The copy's own files are checked by size and time of change, and by their hash
where the time is another.  One lock serializes conversions, evictions and deletions; a copy
appears whole or not at all.  Each use sets the record's time of change, by which the copies that
were not used for longest make room.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lightstride.errors import ConfigError, ModelError, OutputError
from lightstride.files import cache_folder, whole_folder
from lightstride.files.lock import in_turn
from lightstride.files.read import file_digest
from lightstride.files.sealed import read_sealed, write_sealed

FORMAT = 1
RECORD = "conversion.json"
LOCK = ".lock"
LIMIT_GB = 20.0
"""Size of all copies, unless LIGHTSTRIDE_CACHE_GB says another."""
IN_USE_SECONDS = 600
"""A copy that was asked for so recently may be being read: it makes no room for another."""
MOST_STAMPS = 8
"""Places at which a source is known; the oldest are forgotten."""

Stamp = tuple[str, int, int]
"""A file's path, size and time of change in nanoseconds."""


class FileEntry(msgspec.Struct):
    """A file as it was written: its size, its time of change in nanoseconds, its hash."""

    bytes: int
    mtime_ns: int
    sha256: str


class SourceEntry(msgspec.Struct):
    """What a copy was made from."""

    sha256: str
    bytes: int


class ConversionRecord(msgspec.Struct):
    """`conversion.json`."""

    format: int
    version: int
    source: SourceEntry
    seen: Annotated[list[Annotated[list[Stamp], Meta(min_length=1)]], Meta(min_length=1)]
    files: dict[str, FileEntry]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source to convert: one file, or several that are one file together."""

    name: str
    parts: tuple[Path, ...]
    sha256: str | None = None
    """Hash that the whole must have, where it is known."""

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(part.stat().st_size for part in self.parts)

    def stamps(self) -> list[Stamp]:
        """By what the parts are known again without reading them."""
        return [stamp(part) for part in self.parts]

    def digest(self) -> str:
        """Hash of the whole; ModelError if it is another than it must be."""
        digest = hashlib.sha256()
        for part in self.parts:
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        found = digest.hexdigest()
        if self.sha256 not in (None, found):
            raise ModelError(
                f"the packages of {self.parts[0].name} are damaged; install them again"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A folder in the cache; one without a readable record is damaged, and of no use."""

    folder: Path
    record: ConversionRecord | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def used(self) -> float:
        """When it was last asked for, in seconds since 1970; 0 if that is not known."""
        path = self.folder / RECORD
        return path.stat().st_mtime if path.is_file() else 0.0

    @property
    def source(self) -> str:
        """Path of the file it was made from, where that was seen last; empty if not known."""
        return self.record.seen[-1][0][0] if self.record else ""

    @property
    def source_sha256(self) -> str:
        """Hash of the file it was made from; empty if not known."""
        return self.record.source.sha256 if self.record else ""

    def is_of(self, stamps: list[Stamp]) -> bool:
        """Whether its source has these stamps."""
        return self.record is not None and stamps in self.record.seen

    def is_sound(self, *, thorough: bool = False) -> bool:
        """Whether every file is as it was written; `thorough` reads all of them again."""
        return self.record is not None and all(
            is_unchanged(self.folder / name, known, thorough)
            for name, known in self.record.files.items()
        )


def kept(source: Source, version: int, convert: Callable[[Path], object]) -> Path:
    """The folder with the copy of a source; `convert` fills an empty folder if there is none."""
    known = next((copy for copy in copies() if copy.is_of(source.stamps())), None)
    if known is not None and is_version(known, version) and known.is_sound():
        return touched(known.folder)
    with in_turn(cache_folder() / LOCK):
        digest = source.digest()
        key = hashlib.sha256(f"{version} {digest}".encode()).hexdigest()[:12]
        folder = converted_folder() / f"{source.name}-{key}"
        copy = Copy(folder=folder, record=read_entry(folder))
        if folder.exists() and not copy.is_sound():
            remove(folder)
        if not folder.exists():
            drop_unfinished()
            make(source, version, digest, folder, convert)
            make_room(keep=folder)
            return folder
        assert copy.record is not None
        seen = [known for known in copy.record.seen if known != source.stamps()]
        copy.record.seen = [*seen, source.stamps()][-MOST_STAMPS:]
        write_record(folder, copy.record)
        return folder


def make(
    source: Source, version: int, digest: str, folder: Path, convert: Callable[[Path], object]
) -> None:
    """Convert into a folder that appears with its record, or not at all."""
    started = time.perf_counter()
    with whole_folder(folder) as partial:
        convert(partial)
        files = {path.name: described(path) for path in sorted(partial.iterdir())}
        record = ConversionRecord(
            format=FORMAT,
            version=version,
            source=SourceEntry(sha256=digest, bytes=source.num_bytes),
            seen=[source.stamps()],
            files=files,
            seconds=time.perf_counter() - started,
        )
        write_record(partial, record)


def make_room(keep: Path) -> None:
    """Delete the copies used longest ago until all are within the limit; `keep` stays."""
    limit, now = limit_bytes(), time.time()
    found = sorted(copies(), key=lambda copy: copy.used)
    total = sum(copy.num_bytes for copy in found)
    for copy in found:
        if total > limit and copy.folder != keep and now - copy.used > IN_USE_SECONDS:
            total -= copy.num_bytes
            remove(copy.folder)


def clear(name: str | None) -> list[Copy]:
    """Delete the copies of a name (with or without its key), or all that is kept; what it was."""
    with in_turn(cache_folder() / LOCK):
        drop_unfinished()
        found = [copy for copy in (*copies(), *older()) if name is None or is_named(copy, name)]
        for copy in found:
            remove(copy.folder)
    if name is not None and not found:
        there = ", ".join(copy.name for copy in copies()) or "nothing"
        raise ConfigError(f"--clear {name}: there is no such copy; there is: {there}")
    return found


def copies() -> list[Copy]:
    """All copies there are, by name."""
    folders = sorted(path for path in listed(converted_folder()) if not path.name.startswith("."))
    return [Copy(folder=folder, record=read_entry(folder)) for folder in folders]


def older() -> list[Copy]:
    """Folders of earlier versions of this package, which nothing reads any more."""
    folders = [path for name in ("gguf", "built-in") for path in listed(cache_folder() / name)]
    return [Copy(folder=folder, record=None) for folder in folders]


def limit_bytes() -> float:
    """How much all copies may take; ConfigError where the environment gives no number."""
    given = os.environ.get("LIGHTSTRIDE_CACHE_GB")
    try:
        limit = LIMIT_GB if given is None else float(given)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ConfigError(f"LIGHTSTRIDE_CACHE_GB={given} is not allowed: it must be 0 or more")
    return limit * 1e9


def converted_folder() -> Path:
    """Where copies are."""
    return cache_folder() / "converted"


def is_named(copy: Copy, name: str) -> bool:
    """Whether a copy is meant by a name, which may lack the key."""
    return name in (copy.name, copy.name.rpartition("-")[0])


def is_version(copy: Copy, version: int) -> bool:
    """Whether the converter that made a copy is the one of today."""
    return copy.record is not None and copy.record.version == version


def read_entry(folder: Path) -> ConversionRecord | None:
    """A copy's record; None where it is missing, damaged or of another format."""
    try:
        record = read_sealed(folder / RECORD, ConversionRecord, ModelError)
    except ModelError:
        return None
    return record if record.format == FORMAT else None


def write_record(folder: Path, record: ConversionRecord) -> None:
    """Write a copy's record with its hash."""
    write_sealed(folder / RECORD, msgspec.to_builtins(record))


def listed(folder: Path) -> Iterator[Path]:
    """The folders in a folder, none if it is not there."""
    return (path for path in folder.glob("*") if path.is_dir())


def touched(folder: Path) -> Path:
    """The folder, noted as used now."""
    with suppress(OSError):  # a cache that can only be read
        os.utime(folder / RECORD)
    return folder


def remove(folder: Path) -> None:
    """Take a folder away at once, then its files."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.replace(gone)
    except OSError as error:
        raise OutputError(f"cannot delete {folder}: {error.strerror}") from error
    shutil.rmtree(gone, ignore_errors=True)


def drop_unfinished() -> None:
    """Delete what killed processes left; under the lock nobody else is writing."""
    for folder in listed(converted_folder()):
        if folder.name.startswith(".") and folder.name.endswith(".partial"):
            shutil.rmtree(folder, ignore_errors=True)


def stamp(path: Path) -> Stamp:
    """A file's path, size and time of change."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def described(path: Path) -> FileEntry:
    """Size, time of change and hash of a file."""
    _, size, changed = stamp(path)
    return FileEntry(bytes=size, mtime_ns=changed, sha256=file_digest(path, ModelError))


def is_unchanged(path: Path, known: FileEntry, thorough: bool) -> bool:
    """Whether a file is the described one; it is read only if its time of change is another."""
    if not path.is_file():
        return False
    _, size, changed = stamp(path)
    if size != known.bytes:
        return False
    if changed == known.mtime_ns and not thorough:
        return True
    return file_digest(path, ModelError) == known.sha256
