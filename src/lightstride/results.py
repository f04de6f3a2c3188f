"""Numbers with their origin: how `result.json` is written, read and turned into tables.

A result holds measurements (`numbers`) beside everything needed to measure again: the
command, its configuration, the commit, the versions, the hardware, the seed and the data's hashes.
Reports and the README are made of these files and of nothing else.
"""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypedDict, get_type_hints

import msgspec

from lightstride import __version__
from lightstride.errors import DataError
from lightstride.files import write_json
from lightstride.files.read import read_json

SCHEMA = 1
MIB = 2**20
"""Bytes, as tables and charts count them."""
Numbers = dict[str, object]
"""What a command has measured, by name."""
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "accelerate",
    "lm_eval",
    "gguf",
    "xllamacpp",
)


class Hardware(TypedDict):
    """The machine that measured."""

    cpu: str
    cores: int
    memory_bytes: int
    gpus: list[str]


class Result(TypedDict):
    """One `result.json`."""

    schema: int
    kind: str
    created: str
    numbers: Numbers
    config: dict[str, object]
    command: list[str]
    seed: int | None
    data: dict[str, str]
    commit: str | None
    versions: dict[str, str]
    hardware: Hardware


def write_result(
    path: str | Path,
    *,
    kind: str,
    numbers: Mapping[str, object],
    config: Mapping[str, object],
    command: Sequence[str],
    seed: int | None,
    data: Mapping[str, str],
) -> Result:
    """Write a result with its origin, whole or not at all; what was written.

    `data` maps each source to a hash of what was read from it.  A number that is infinite or not
    a number is written as null.
    """
    result = Result(
        schema=SCHEMA,
        kind=kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        numbers=jsonable(numbers),
        config=jsonable(config),
        command=list(command),
        seed=seed,
        data=dict(data),
        commit=commit(),
        versions=versions(),
        hardware=hardware(),
    )
    write_json(path, result)
    return result


def read_result(path: str | Path) -> Result:
    """A checked result; DataError where the file is none, or of another schema."""
    document = read_json(Path(path), dict[str, object], DataError)
    if "schema" not in document:
        raise DataError(f"{path} is not a result: it has no schema number")
    if document["schema"] != SCHEMA:
        raise DataError(f"{path} has schema {document['schema']}; this version reads {SCHEMA}")
    wanted, given = set(get_type_hints(Result)), set(document)
    for problem, keys in (("lacks", wanted - given), ("has the unknown", given - wanted)):
        if keys:
            raise DataError(f"{path} is not a result: it {problem} {', '.join(sorted(keys))}")
    try:
        return msgspec.convert(document, Result)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} is not a result: {error}") from error


def jsonable(values: Mapping[str, object]) -> dict[str, object]:
    """The same values as JSON has them: lists for tuples, null for what is not finite."""
    return {str(key): _jsonable(value) for key, value in values.items()}


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return jsonable(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Iterable):
        return [_jsonable(each) for each in value]
    return value


def commit() -> str | None:
    """The commit of this package's source, with + for changes; None where it is not a checkout."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True
        )
        if tracked.returncode:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."])
    except OSError:  # no git on this machine
        return None
    return head.stdout.strip() + ("+" if changed.returncode else "")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    found = {"python": platform.python_version(), "lightstride": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> Hardware:
    """Processor, usable cores, memory, and the accelerators that torch has been asked about."""
    torch = sys.modules.get("torch")
    gpus = torch.cuda if torch is not None and torch.cuda.is_available() else None
    return Hardware(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=[] if gpus is None else [gpus.get_device_name(i) for i in range(gpus.device_count())],
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, readable as plain text too: first column left, others right."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return (
            "| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]) + " |"
        )

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])
