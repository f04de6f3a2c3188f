"""Files of records, and hub data sets, to records: the source of texts and prompts.

A record is a line of .jsonl, an entry of .json, or a row of .parquet or of a hub data set;
each comes with words that say where it stands, for error messages.
"""

import gzip
import importlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from lightstride.errors import DataError, NetworkError
from lightstride.files.read import file_size, parse_json

RECORD_SUFFIXES = (".jsonl", ".json", ".parquet")
RECORD_FILES = f"a file or folder of {', '.join(RECORD_SUFFIXES)} (or .gz of them)"
DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(:[\w.-]+)?")

MAX_TEXT_BYTES = 1 << 30
"""Of one file, unpacked."""
PIECE_BYTES = 1 << 20

Located = tuple[str, object]
"""Where a record stands, and the record."""


def suffix_of(path: Path) -> str:
    """The suffix of a file, without .gz; empty for a hidden file."""
    if path.name.startswith("."):
        return ""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All files below a folder that have one of these suffixes, in order."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and suffix_of(p) in suffixes]


def read_text(path: Path) -> str:
    """A text file, unpacked; DataError where it cannot be read or is no UTF-8."""
    if file_size(path, DataError) > MAX_TEXT_BYTES:
        raise DataError(f"{path} has more than {MAX_TEXT_BYTES >> 30} GiB; split it")
    try:
        data = bytearray()
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                data += piece
                if len(data) > MAX_TEXT_BYTES:
                    raise DataError(
                        f"{path} has, unpacked, more than {MAX_TEXT_BYTES >> 30} GiB; split it"
                    )
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def file_records(path: Path, keys: Collection[str]) -> Iterator[Located]:
    """The records of a .jsonl, .json or .parquet file; an object with one of `keys` is a record."""
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from parquet_records(path, list)
    elif suffix == ".jsonl":
        yield from line_records(path, read_text(path))
    else:
        yield from json_records(path, read_text(path), keys)


def line_records(path: Path, text: str) -> Iterator[Located]:
    """A record a line; empty lines are left out."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield where, parse_json(line, object, where, DataError)


def json_records(path: Path, text: str, keys: Collection[str]) -> Iterator[Located]:
    """The records of a list, of an object's only list, or the object itself if it has a key."""
    content = parse_json(text, object, str(path), DataError)
    if isinstance(content, dict) and not any(key in content for key in keys):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        yield f"{path} record {number}", record


def parquet_records(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[Located]:
    """The rows of a parquet file, with the columns that `choose` picks from their names."""
    parquet, arrow = optional("pyarrow.parquet"), optional("pyarrow")
    file_size(path, DataError)
    try:
        file = parquet.ParquetFile(path)
        columns = choose(file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            yield from ((str(path), row) for row in batch.to_pylist())
    except (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"cannot read {path}: {(str(error) or 'damaged').splitlines()[0]}"
        ) from error


def hub_records(source: str, offline: str) -> Iterator[Located]:
    """Stream a hub data set (`owner/name`, or `owner/name:config:split`).

    Raises NetworkError, with what else can be given, where the hub cannot be reached.
    """
    datasets, hub = optional("datasets"), optional("huggingface_hub.errors")
    name, *more = source.split(":")
    config = more[0] if more else None
    split = more[1] if len(more) > 1 else "train"
    try:
        for row in datasets.load_dataset(name, config, split=split, streaming=True):
            yield source, row
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise DataError(
            f"cannot read hub data set {source}: {str(error).split('. ')[0]}"
        ) from error
    except (OSError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled) as error:
        raise NetworkError(
            f"cannot reach the hub for data set {source}; without a network use {offline}"
        ) from error


def as_mapping(record: object, where: str) -> Mapping[str, object]:
    """The record's fields; DataError where it has none."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is neither a text nor a record with one: {str(record)[:40]!r}")
    return record


def optional(module: str) -> ModuleType:
    """A module of the extra `data`; DataError says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this source needs {module}, which is not installed: pip install 'lightstride[data]'"
        ) from error
