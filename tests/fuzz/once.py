"""One input: a command reads what was damaged, and all that it may do is checked."""

import contextlib
import faulthandler
import io
import json
import logging
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import lightstride
from lightstride import cli

SECONDS, WALL_SECONDS = 20, 60
MEMORY = 1 << 30
"""What one input may take above what the process has."""
PACKAGE = str(Path(lightstride.__file__).parent)
logging.disable(logging.WARNING)


class FuzzError(Exception):
    """What a command must not do; `kind` is the same for failures of one cause."""

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(f"{kind}\n{told}")
        self.kind = kind


class TooLongError(BaseException):
    """An input took too long; nothing on the way may take it for an error of its own."""


def too_long(_signal: int, frame: FrameType | None) -> None:
    raise TooLongError("".join(traceback.format_stack(frame)[-6:]))


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """A ceiling that stops bombs, of memory and of time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {each: signal.signal(each, too_long) for each in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    # Where no handler runs, as in a library that opens a pipe: the stacks, and the end.
    faulthandler.dump_traceback_later(2 * WALL_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak_memory() -> int:
    """Most bytes that the process has held since the peak was last reset."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def run_once(arguments: list[str], home: Path) -> str:
    """Run one command line in a folder, whose `out*` are its outputs; its error, empty for none.

    Raises FuzzError for a traceback, an answer that is none, a hang, much memory or a half-written
    output.
    """
    out, err = io.StringIO(), io.StringIO()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start = peak_memory()
    try:
        with limits(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        told = check(code, out.getvalue(), err.getvalue(), home)
    except TooLongError as stopped:
        raise FuzzError(f"hang {place_of(stopped)}", str(stopped)) from None
    except FuzzError:
        raise
    except BaseException as error:
        kind = f"{type(error).__name__} {place_of(error)}"
        raise FuzzError(kind, "".join(traceback.format_exception(error)[-12:])) from None
    finally:
        for made in home.glob("out*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    taken = peak_memory() - start
    if taken > MEMORY:
        raise FuzzError("memory", f"{taken / 2**20:,.0f} MiB")
    return told


def place_of(error: BaseException) -> str:
    """The innermost line of this package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if each.filename.startswith(PACKAGE)] or frames
    last = ours[-1]
    return f"{last.filename.removeprefix(PACKAGE)}:{last.lineno} {last.name}"


def check(code: int, out: str, err: str, home: Path) -> str:
    """The line of an error; FuzzError unless all is an answer, or one line and nothing else."""
    if code == 0:
        try:
            json.loads(out, parse_constant=refuse)
        except ValueError as error:
            raise FuzzError(f"no answer: {error}", out[-500:]) from None
        return ""
    if code == 1 and (ours := re.findall(r'lightstride(/\S+)", line (\d+), in (\w+)', err)):
        raise FuzzError("{}:{} {}".format(*ours[-1]), err[-3000:])
    errors = [line for line in err.splitlines() if line.startswith("lightstride: error")]
    if code != 2 or len(errors) != 1 or out or "Traceback" in err:
        raise FuzzError(f"not one line, code {code}", f"{out[-500:]}\n{err[-2000:]}")
    if len(errors[0]) > 1500:
        raise FuzzError("a line that is too long", errors[0])
    names = ("config.json", "result.json", "lightstride.json")
    wholes = [path for name in names for path in home.glob(f"out/{name}")]
    wholes += home.glob("out*.gguf")
    if wholes:
        raise FuzzError("looks whole after an error", f"{wholes}\n{errors[0]}")
    return errors[0]


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} in a result")
