"""Closed, narrow and foreign streams: the right result or one line, never a traceback."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint

GENERATE = ("generate", "model", "--max-new-tokens", "4", "--device", "cpu", "--raw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams")
    save_checkpoint(tiny_llama(), byte_tokenizer(), path / "model")
    return path


def run(
    folder: Path,
    command: str,
    *,
    given: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """A shell line, in which `lightstride` is the command under test."""
    words = f"{sys.executable} -m lightstride"
    line = command.replace("lightstride", words, 1).encode("utf-8", "surrogateescape")
    return subprocess.run(
        ["bash", "-c", b"set -o pipefail; " + line],
        cwd=folder,
        input=given,
        capture_output=True,
        env={**os.environ, **(environment or {})},
    )


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The error of a command that ended with exit code 2."""
    assert done.returncode == 2, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert lines[-1].startswith("lightstride: error: ")
    assert "Traceback" not in done.stderr.decode()
    return lines[-1]


def test_a_reader_that_has_seen_enough_ends_it_silently(folder: Path) -> None:
    done = run(folder, "lightstride --help | head -1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(folder: Path, closed: str) -> None:
    assert run(folder, f"lightstride --help {closed}").returncode == 0
    if closed == "<&-":
        assert "is empty" in one_line(run(folder, f"lightstride {' '.join(GENERATE)} -p - <&-"))
    if closed == "<&- >&- 2>&-":
        done = run(folder, f"lightstride {' '.join(GENERATE)} -p Hello {closed}")
        assert done.returncode == 0


def test_bytes_that_are_no_text(folder: Path) -> None:
    words = " ".join(GENERATE)
    assert "caf\\xe9 is not UTF-8 text" in one_line(
        run(folder, f"lightstride {words} -p $'caf\\xe9'")
    )
    assert "\\xe9 is not UTF-8 text" in one_line(run(folder, "lightstride bench $'\\xe9'"))
    done = run(folder, f"lightstride {words} -p -", given=b"caf\xe9")
    assert "the prompt on standard input is not UTF-8 text" in one_line(done)


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
    + [{"PYTHONIOENCODING": name} for name in ("latin-1", "ascii", "utf-16")],
    ids=str,
)
def test_any_locale(folder: Path, environment: Mapping[str, str]) -> None:
    words = " ".join(GENERATE)
    done = run(
        folder, f"lightstride {words} -p -", given="café –".encode(), environment=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    done = run(folder, "lightstride prune --help", environment=environment)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("columns", [0, 1, 30])
def test_a_terminal_of_any_width(folder: Path, columns: int) -> None:
    lines = [["prune", "--help"], [*GENERATE, "-p", "Hello", "--show-steps"]]
    for arguments in lines if columns == 1 else lines[:1]:
        said = on_terminal(folder, arguments, columns)
        assert b"Traceback" not in said
        assert 0 < len(said.splitlines()) < 1000


def on_terminal(folder: Path, arguments: Sequence[str], columns: int) -> bytes:
    """What a command writes to a terminal so wide."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "lightstride", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=its, stdout=its, stderr=its)
    os.close(its)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait(60) == 0, said.decode()
    return said
