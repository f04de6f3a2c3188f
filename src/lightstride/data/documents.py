"""Where text comes from: a source's name to a list of documents.

A source is `pydoc` (built in), a file, a folder, or the id of a hub data set.  A document is one
article, record or file: the unit that is never in two roles at once.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from lightstride.data.pydoc import library_documents, topic_documents
from lightstride.data.records import (
    DATASET_ID,
    RECORD_SUFFIXES,
    as_mapping,
    file_records,
    files_in,
    hub_records,
    parquet_records,
    read_text,
    suffix_of,
)
from lightstride.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".text", ".raw", ".tokens")
SUFFIXES = TEXT_SUFFIXES + RECORD_SUFFIXES
TEXT_KEYS = ("text", "content", "document", "article", "body", "raw_content")
ARTICLE = re.compile(r"^ = [^=\n][^\n]* = $", re.MULTILINE)
"""A title in WikiText's raw and tokenized files."""
FILES = f"a file or folder of {', '.join((*TEXT_SUFFIXES[:2], *RECORD_SUFFIXES))} (or .gz of them)"
TEXT_SOURCES = f"pydoc (built in), self, or {FILES}"
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
        files = files_in(path, SUFFIXES)
        if not files:
            raise DataError(f"{source} is not {FILES}")
        for file in files:
            yield from _file_documents(file)
    elif path.exists():
        if suffix_of(path) not in SUFFIXES:
            raise DataError(f"{source} is not {FILES}")
        yield from _file_documents(path)
    elif DATASET_ID.fullmatch(source) and not path.suffix:
        yield from (_record_text(row, where) for where, row in hub_records(source, TEXT_SOURCES))
    else:
        raise DataError(
            f"there is no text source {source!r}: it must be {TEXT_SOURCES}, or a hub id"
        )


def _file_documents(path: Path) -> Iterator[str]:
    suffix = suffix_of(path)
    if suffix == ".parquet":
        for _, row in parquet_records(path, lambda names: [_text_key(names, str(path))]):
            yield from (str(value) for value in as_mapping(row, str(path)).values() if value)
    elif suffix in RECORD_SUFFIXES:
        for where, record in file_records(path, TEXT_KEYS):
            yield _record_text(record, where)
    else:
        yield from split_text(read_text(path))


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


def _record_text(record: object, where: str) -> str:
    if isinstance(record, str):
        return record
    record = as_mapping(record, where)
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
