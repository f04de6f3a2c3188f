"""One writer a folder: an advisory lock beside it that says who holds it; turns for caches.

The lock is the system's own, so it is gone with its process, however that ends; a lock file that
nobody holds is a stale one and is taken over.  It stands beside the folder and goes when the
block ends.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lightstride.errors import OutputError
from lightstride.files.write import reason


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not exist yet; nested holds of one process count.

    Raises OutputError that names process, host and start of the holder where another has it.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{folder} is being written by {holder(path)}; name another") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    try:
        sign(path)
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                path.unlink()
        lock.release()


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait until no other process is inside a block with this lock file, which stays.

    Raises OutputError where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def sign(path: Path) -> None:
    """Write into a lock file that this process holds it."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # some systems let nobody write a locked file
        path.write_text(json.dumps(owner), encoding="utf-8")


def holder(path: Path) -> str:
    """Who holds a lock, as far as its file tells."""
    try:
        owner = json.loads(path.read_text("utf-8"))
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
