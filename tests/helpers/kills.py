"""Commands that are killed, at a boundary of what they write or at any moment, and resumed.

Each run is a process of its own, forked from one that has opened a model and trained nothing:
torch cannot train in a fork of a process that has.
"""

import contextlib
import errno
import faulthandler
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from helpers.boundaries import WRITES, boundaries
from helpers.tiny_commands import TINY, found_in, saved_often
from lightstride import cli

KILLED = 77
SAID = "said.txt"
HUNG = 200
"""Seconds after which a command tells where it hangs, and ends."""


@dataclass(frozen=True)
class Kill:
    """A kill right at a boundary, or after so many seconds."""

    boundary: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return (
            f"killed after {self.seconds} s"
            if self.boundary is None
            else f"killed at {self.boundary}"
        )

    def at(self, seen: int, *_: object) -> None:
        """End the process where it is time."""
        if seen == self.boundary:
            os._exit(KILLED)


@dataclass(frozen=True)
class Fault:
    """A disk that is full, or can only be read, from a boundary on."""

    boundary: int
    number: int
    """The system's number of the error: ENOSPC or EROFS."""

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} from {self.boundary}"

    def at(self, seen: int, moment: str, operation: str, path: str) -> None:
        """Raise the error where the operation needs room, or changes anything."""
        needs = self.number == errno.EROFS or operation in WRITES
        if seen >= self.boundary and moment != "after" and needs:
            raise OSError(self.number, os.strerror(self.number), path)


@dataclass(frozen=True)
class Signal:
    """A signal that asks the command to end, at a boundary."""

    boundary: int
    number: int

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name} at {self.boundary}"

    def at(self, seen: int, *_: object) -> None:
        """Send it to this process."""
        if seen == self.boundary:
            signal.raise_signal(self.number)


Trouble = Kill | Fault | Signal
KINDS: tuple[tuple[type[Fault] | type[Signal], int], ...] = (
    (Fault, errno.ENOSPC),
    (Fault, errno.EROFS),
    (Signal, signal.SIGTERM),
    (Signal, signal.SIGINT),
)


def forked(work: Callable[[], int], seconds: float | None = None) -> int:
    """The exit code of a process that does this; -9 where it is killed after so many seconds."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            faulthandler.dump_traceback_later(HUNG, exit=True)
            code = work()
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def run_tiny(
    name: str,
    sources: Path,
    folder: Path,
    *,
    trouble: Trouble | None = None,
    resume: bool = False,
) -> int:
    """Run a tiny command in this process, in trouble at a boundary; its exit code.

    The number of boundaries is in `boundaries.txt` afterwards, the output in `said.txt`.
    """
    os.environ["LIGHTSTRIDE_CACHE"] = str(folder / "cache")
    seen = 0

    def tell(*what: str) -> None:
        nonlocal seen
        seen += 1
        if trouble is not None:
            trouble.at(seen - 1, *what)

    with (
        open(folder / SAID, "w", buffering=1) as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        saved_often(),
        boundaries(folder, tell),
    ):
        code = cli.main(TINY[name].arguments(sources, folder, resume=resume))
    (folder / "boundaries.txt").write_text(str(seen))
    return code


@dataclass(frozen=True)
class Trial:
    """A command in a folder of its own, and what a run without trouble leaves."""

    name: str
    sources: Path
    folder: Path
    whole: dict[str, str]

    def killed(self, kills: Sequence[Kill]) -> str:
        """Kill it so often, each time resumed, and let it end; the problem, empty if none."""
        for number, kill in enumerate(kills):
            code = self.run(kill, resume=number > 0, seconds=kill.seconds)
            if code == 0:
                return self.difference()
            if code not in (KILLED, -signal.SIGKILL):
                return f"ended with {code}: {self.said()}"
        return self.resumed()

    def failed(self, fault: Fault | Signal) -> str:
        """Let the disk fail, or send a signal, then resume it; the problem, empty if none."""
        code, said = self.run(fault), self.said()
        wanted = 2 if isinstance(fault, Fault) else 128 + fault.number
        lines = [line for line in said.splitlines() if line.startswith("lightstride: error: ")]
        if code == 0:  # what failed may fail, as the removal of a lock
            return self.difference(left=[])
        if code != wanted or len(lines) != 1 or not said.endswith(f"{lines[0]}\n"):
            return f"ended with {code}: {said}"
        left = [path for path in self.left() if not path.endswith(".lock")]
        if left and fault.number != errno.EROFS:
            return f"{left} is left"
        return self.resumed()

    def run(
        self, trouble: Trouble | None, *, resume: bool = False, seconds: float | None = None
    ) -> int:
        """Run it in a process of its own; its exit code."""
        return forked(
            lambda: run_tiny(self.name, self.sources, self.folder, trouble=trouble, resume=resume),
            seconds,
        )

    def resumed(self) -> str:
        """Run it to its end; the problem, empty if none."""
        code = self.run(None, resume=True)
        is_there = "exists already" in self.said() and not TINY[self.name].is_resumable
        if code != 0 and not is_there:
            return f"resuming ended with {code}: {self.said()}"
        return self.difference()

    def difference(self, left: Sequence[str] | None = None) -> str:
        """What differs from a run without trouble, or is left half-written; empty if nothing."""
        found = found_in(self.folder)
        if found != self.whole:
            keys = sorted({*found, *self.whole})
            return f"{[key for key in keys if found.get(key) != self.whole.get(key)]} differ"
        left = self.left() if left is None else left
        return f"{left} is left" if left else ""

    def left(self) -> list[str]:
        """Files that are half-written, or locks."""
        lock = self.folder / "cache" / ".lock"
        return [str(path) for path in self.folder.rglob(".*") if path != lock]

    def said(self) -> str:
        """The end of what the last run said."""
        return (self.folder / SAID).read_text()[-600:]


def whole_run(name: str, sources: Path, home: Path) -> tuple[dict[str, str], int, float]:
    """What a run without trouble leaves, its boundaries, and its seconds."""
    trial = Trial(name, sources, home / "whole", {})
    trial.folder.mkdir(parents=True)
    start = time.perf_counter()
    assert trial.run(None) == 0, trial.said()
    taken = time.perf_counter() - start
    there = int((trial.folder / "boundaries.txt").read_text())
    return found_in(trial.folder), there, taken


def kill_all(sources: Path, folder: Path, counts: dict[str, tuple[int, int]], seed: int) -> None:
    """For each command, so many kills at boundaries and so many at random moments.

    Writes a line for every problem to `problems.txt`, and the number of kills to `done.txt`.
    """
    torch.set_num_threads(1)
    draw, told = random.Random(seed), Told(folder)
    for name, (at_boundaries, at_moments) in counts.items():
        whole, there, taken = whole_run(name, sources, folder / name)
        chosen = draw.sample(range(there), min(there, at_boundaries))
        plans = [[Kill(boundary)] for boundary in chosen]
        for _ in range(at_moments):
            times = draw.choice((1, 2))
            plans.append([Kill(seconds=round(draw.uniform(0, taken), 4)) for _ in range(times)])
        for number, kills in enumerate(plans):
            trial = Trial(name, sources, folder / name / str(number), whole)
            trial.folder.mkdir()
            told.note(trial, f"{name} {kills[0]}", trial.killed(kills))


def fail_all(sources: Path, folder: Path, count: int, seed: int) -> None:
    """So many troubles that a command can tell of, each kind and each command in turn.

    From a boundary on the disk is full, or can only be read; or a signal asks the command to end.
    Writes what `kill_all` does.
    """
    torch.set_num_threads(1)
    draw, told = random.Random(seed), Told(folder)
    for place, name in enumerate(TINY):
        whole, there, _ = whole_run(name, sources, folder / name)
        for turn in range(len(range(place, count, len(TINY)))):
            kind, number = KINDS[(place + turn) % len(KINDS)]
            fault = kind(draw.randrange(there), number)
            trial = Trial(name, sources, folder / name / str(turn), whole)
            trial.folder.mkdir()
            told.note(trial, f"{name} {fault}", trial.failed(fault))


class Told:
    """Problems so far, in files of a folder that are written after each trial."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.done = 0

    def note(self, trial: Trial, what: str, problem: str) -> None:
        """Note one trial, whose folder goes where there was no problem."""
        self.done += 1
        if problem:
            self.problems.append(f"{what}: {problem}")
            sys.stderr.write(f"{self.problems[-1]}\n")
        else:
            shutil.rmtree(trial.folder)
        (self.folder / "problems.txt").write_text("\n\n".join(self.problems))
        (self.folder / "done.txt").write_text(str(self.done))
