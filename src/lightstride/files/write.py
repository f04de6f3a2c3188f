"""The one way to write: files and folders that appear whole or not at all.

whole_file, whole_folder   a temporary name to write under, renamed when the block ends well
write_json                 a JSON document, by `whole_file`
append_lines, read_lines   a file that grows by whole lines; a last line that was cut is no line
cache_folder               where things are kept that are made once and used again

Everything written has the permissions of a usual new file (safetensors' own would be 0600).
"""

import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

from lightstride.errors import OutputError
from lightstride.files.read import file_size


def cache_folder() -> Path:
    """The folder of things made once and used again: LIGHTSTRIDE_CACHE, or ~/.cache/lightstride."""
    given = os.environ.get("LIGHTSTRIDE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "lightstride"


def check_new_folder(folder: Path) -> None:
    """Raise OutputError unless this is an empty folder, or nothing yet."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already; name a new or an empty folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the folder's name when the block ends well.

    Raises OutputError, leaving nothing behind, when the folder exists and is not empty, when it
    cannot be written, or when the disk is full.
    """
    check_new_folder(folder)
    partial = temporary(folder)
    try:
        with disk_errors(folder):
            remove_abandoned(folder)
            partial.mkdir(parents=True)
            yield partial
            rename_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rename_folder(partial: Path, folder: Path) -> None:
    """Give a folder that is finished its name; OutputError where that fails."""
    with disk_errors(folder):
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(usual_mode())
        partial.replace(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write under; the file takes its own name when the block ends well.

    Folders on the way are made.  Raises OutputError, leaving nothing behind, when the file cannot
    be written or the disk is full.
    """
    partial = temporary(path)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path)
            yield partial
            partial.chmod(usual_mode())
            partial.replace(path)
    finally:
        with suppress(OSError):  # renamed, or never there
            partial.unlink()


def write_json(path: str | Path, document: object, *, indent: int | None = 2) -> None:
    """Write a JSON document by `whole_file`; ValueError where a number is not finite."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(Path(path)) as partial:
        partial.write_text(text, "utf-8")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines at the end of a file, at once; OutputError where that fails."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


def read_lines(path: Path, *, mend: bool = False) -> list[bytes]:
    """The whole lines of a file, none if it is not there; a cut last one is left out.

    With `mend` a cut line is also taken off the file, so that more lines can be appended.
    """
    if not path.exists():
        return []
    file_size(path, OutputError)
    try:
        *lines, cut = path.read_bytes().split(b"\n")
        if cut and mend:
            with path.open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - len(cut))
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason(error)}") from error
    return lines


def temporary(path: Path) -> Path:
    """The hidden sibling that stands for a file or folder while this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.partial")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are gone left half-written under this name."""
    own = f"@{socket.gethostname()}.partial"
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{glob.escape(own)}"):
        writer = left.name.removeprefix(f".{path.name}.").removesuffix(own)
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)


def usual_mode() -> int:
    """Permissions of a new file under the process's umask: 0644 nearly everywhere."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside this context what the system says of the disk becomes an OutputError about a path.

    safetensors has an error of its own for it; tokenizers raises a plain Exception.
    """
    try:
        yield
    except Exception as error:
        is_plain = type(error) is Exception and "(os error " in str(error)
        if isinstance(error, OSError | SafetensorError) or is_plain:
            raise OutputError(f"cannot write {path}: {reason(error)}") from error
        raise


def reason(error: Exception) -> str:
    """Why writing failed, in a few words."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in text:
        return "no space left on the disk"
    return getattr(error, "strerror", None) or text.splitlines()[0]
