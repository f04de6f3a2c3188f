"""Where text comes from: a source's name to a list of documents.

A source is `pydoc` (built in), a file, a folder, or the id of a hub data set.  A document is one
article, record or file; what it is decides what may be in two roles at once (nothing may).
"""

import gzip
import hashlib
import importlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from lightstride.data.pydoc import library_documents, topic_documents
from lightstride.errors import DataError, NetworkError

TEXT_SUFFIXES = (".txt", ".md", ".text", ".raw", ".tokens")
RECORD_SUFFIXES = (".jsonl", ".json", ".parquet")
TEXT_KEYS = ("text", "content", "document", "article", "body", "raw_content")
ARTICLE = re.compile(r"^ = [^=\n][^\n]* = $", re.MULTILINE)
"""A title in WikiText's raw and tokenized files."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(:[\w.-]+)?")
FILES = f"a file or folder of {', '.join((*TEXT_SUFFIXES[:2], *RECORD_SUFFIXES))} (or .gz of them)"
OFFLINE = f"pydoc (built in), self, or {FILES}"
MIN_PIECE = 8000
"""A plain text without titles is cut at blank lines into documents of so many characters."""


def read_documents(
    source: str, *, skip: frozenset[str] = frozenset(), enough_characters: int | None = None
) -> list[str]:
    """The distinct documents of a source, in its own order, but for those whose id is in `skip`.

    Of `pydoc` and of a hub data set (`owner/name`, or `owner/name:config:split`) no more is read
    than gives `enough_characters`.  Raises DataError where there is no text at all.
    """
    endless = source == "pydoc" or not Path(source).exists()
    found: dict[str, str] = {}
    characters, empty = 0, True
    for document in _documents(source):
        if not document.strip():
            continue
        empty = False
        if (name := document_id(document)) not in skip and name not in found:
            found[name] = document
            characters += len(document)
        if endless and enough_characters is not None and characters >= enough_characters:
            break
    if empty:
        raise DataError(f"there is no text in {source}")
    return list(found.values())


def document_id(document: str) -> str:
    """The SHA-256 of a document's words; white space does not count."""
    return hashlib.sha256(" ".join(document.split()).encode()).hexdigest()


def _documents(source: str) -> Iterator[str]:
    path = Path(source)
    if source == "pydoc":
        yield from topic_documents()
        yield from library_documents()
    elif source == "self":
        raise DataError("self is sampled from a model; it is not a text that can be read here")
    elif path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and _suffix(p) is not None]
        if not files:
            raise DataError(f"{source} is not {FILES}")
        for file in files:
            yield from _file_documents(file)
    elif path.exists():
        if _suffix(path) is None:
            raise DataError(f"{source} is not {FILES}")
        yield from _file_documents(path)
    elif HUB_ID.fullmatch(source) and not path.suffix:
        yield from _hub_documents(source)
    else:
        raise DataError(f"there is no text source {source!r}: it must be {OFFLINE}, or a hub id")


def _suffix(path: Path) -> str | None:
    """The kind of a file, without .gz; None for one that cannot be read."""
    if path.name.startswith("."):
        return None
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in TEXT_SUFFIXES + RECORD_SUFFIXES else None


def _file_documents(path: Path) -> Iterator[str]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet_documents(path)
        return
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if suffix == ".jsonl":
        yield from _line_documents(path, text)
    elif suffix == ".json":
        yield from _json_documents(path, text)
    else:
        yield from split_text(text)


def split_text(text: str) -> list[str]:
    """Cut a text into documents that together are the text: its articles, or pieces of it."""
    starts = [match.start() for match in ARTICLE.finditer(text)]
    if not starts:
        starts = list(_piece_starts(text))
    ends = [*starts[1:], len(text)]
    return [text[start:end] for start, end in zip([0, *starts[1:]], ends, strict=True)]


def _piece_starts(text: str) -> Iterator[int]:
    yield 0
    last = 0
    for match in re.finditer(r"\n[ \t]*\n+", text):
        if match.end() - last >= MIN_PIECE and len(text) - match.end() >= MIN_PIECE:
            last = match.end()
            yield last


def _line_documents(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number} is not JSON: {error}") from error
            yield _record_text(record, f"{path} line {number}")


def _json_documents(path: Path, text: str) -> Iterator[str]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and not any(key in content for key in TEXT_KEYS):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        yield _record_text(record, f"{path} record {number}")


def _parquet_documents(path: Path) -> Iterator[str]:
    parquet, arrow = _optional("pyarrow.parquet"), _optional("pyarrow")
    try:
        file = parquet.ParquetFile(path)
        key = _text_key(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(columns=[key]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _hub_documents(source: str) -> Iterator[str]:
    """Stream a hub data set; NetworkError where the hub cannot be reached."""
    datasets, hub = _optional("datasets"), _optional("huggingface_hub.errors")
    name, *more = source.split(":")
    config = more[0] if more else None
    split = more[1] if len(more) > 1 else "train"
    try:
        for row in datasets.load_dataset(name, config, split=split, streaming=True):
            yield _record_text(row, source)
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise DataError(
            f"cannot read hub data set {source}: {str(error).split('. ')[0]}"
        ) from error
    except (OSError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled) as error:
        raise NetworkError(
            f"cannot reach the hub for data set {source}; without a network use {OFFLINE}"
        ) from error


def _record_text(record: object, where: str) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is neither a text nor a record with one: {str(record)[:40]!r}")
    text = record[_text_key(list(record), where)]
    if not isinstance(text, str):
        raise DataError(f"{where} has no text: {str(text)[:40]!r}")
    return text


def _text_key(keys: list[str], where: str) -> str:
    for key in TEXT_KEYS:
        if key in keys:
            return key
    raise DataError(
        f"{where} has none of the text fields {', '.join(TEXT_KEYS)}: it has {', '.join(keys)}"
    )


def _optional(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this source needs {module}, which is not installed: pip install 'lightstride[data]'"
        ) from error
