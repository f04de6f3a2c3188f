"""Files that grow by whole lines, so that a killed run loses no line but the one it was writing."""

from collections.abc import Iterable
from pathlib import Path

from lightstride.errors import OutputError
from lightstride.files import reason


def read_lines(path: Path) -> list[bytes]:
    """The whole lines of a file, none if it is not there; a cut last one is left out."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def drop_cut_line(path: Path) -> None:
    """Take off what a killed run wrote behind the last whole line."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines at the end of a file, at once; OutputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
