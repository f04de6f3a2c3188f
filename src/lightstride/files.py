"""Where converted models are kept, and files and folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lightstride.errors import OutputError


def cache_folder() -> Path:
    """The folder of things made once and used again: LIGHTSTRIDE_CACHE, or ~/.cache/lightstride."""
    given = os.environ.get("LIGHTSTRIDE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "lightstride"


def check_absent(folder: Path) -> None:
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
    check_absent(folder)
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write under; the file takes its own name when the block ends well.

    Raises OutputError, leaving nothing behind, when it cannot be written or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def reason(error: OSError | SafetensorError) -> str:
    """Why writing failed, in a few words."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in text:
        return "no space left on the disk"
    return getattr(error, "strerror", None) or text.splitlines()[0]
