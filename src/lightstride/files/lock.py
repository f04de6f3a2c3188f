"""One writer a folder or file: an advisory lock beside it that says who holds it; turns for caches.

The lock is the system's own, so it is gone with its process, however that ends; a lock file that
nobody holds is a stale one and is taken over.  It stands beside what is written (in the system's
folder for temporary files where nothing can be made there) and goes when the block ends.
"""

import errno
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lightstride.errors import OutputError
from lightstride.files.write import reason

SIGNING_SECONDS, SIGNING_TRIES = 1.0, 50
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of an output, which need not exist yet; nested holds of one process count.

    Folders above it are made, and go again where they are empty at the end.  Raises OutputError
    that names process, host and start of the holder where another has it, or where nothing can be
    written there.
    """
    whole = output.resolve()
    missing = [folder for folder in whole.parents if not folder.exists()]
    try:
        lock = acquired(whole)
        path = Path(lock.lock_file)
        try:
            if lock.lock_counter == 1:
                sign(path)
            yield
        finally:
            if lock.lock_counter == 1:
                with suppress(OSError):
                    path.unlink()
            lock.release()
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def acquired(output: Path) -> FileLock:
    """The lock of an output, held; OutputError where another process has it."""
    path = output.parent / f".{output.name}.lock"
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            return held(path)
        except OSError as error:
            if error.errno not in UNWRITABLE or not output.exists():
                raise
        name = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"lightstride-{name}.lock"
        return held(path)
    except Timeout as error:
        raise OutputError(
            f"{output} is being written by {holder(path)}; wait for it, or name another"
        ) from error
    except FileExistsError as error:
        raise OutputError(f"cannot write {output}: a file stands where a folder must") from error
    except OSError as error:
        raise OutputError(f"cannot write {output}: {reason(error)}") from error


def held(path: Path) -> FileLock:
    """The lock of this name, held; filelock's Timeout where another process has it."""
    lock = FileLock(path, timeout=0, is_singleton=True)
    lock.acquire()
    return lock


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait until no other process is inside a block with this lock file, which stays.

    Says on stderr for whom it waits.  Raises OutputError where the file cannot be made.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sys.stderr.write(f"lightstride: waiting for {holder(path)}, which writes here too\n")
            lock.acquire()
        sign(path)
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
    """Who holds a lock, as far as its file tells; who has just taken it is given time to sign."""
    for _ in range(SIGNING_TRIES):
        try:
            owner = json.loads(path.read_text("utf-8"))
            return f"process {owner['process']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(SIGNING_SECONDS / SIGNING_TRIES)
    return "another process"
