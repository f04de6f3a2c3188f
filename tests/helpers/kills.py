"""Commands that are killed, at a boundary of what they write or at any moment, and resumed.

Each run is a process of its own, forked from one that has opened a model and trained nothing:
torch cannot train in a fork of a process that has.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from helpers.boundaries import boundaries
from helpers.tiny_commands import TINY, found_in, saved_often
from lightstride import cli

KILLED = 77
SAID = "said.txt"


@dataclass(frozen=True)
class Kill:
    """A kill right at a boundary, or after so many seconds."""

    boundary: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"after {self.seconds:.3f} s" if self.boundary is None else f"at {self.boundary}"


def forked(work: Callable[[], int], seconds: float | None = None) -> int:
    """The exit code of a process that does this; -9 where it is killed after so many seconds."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def run_tiny(
    name: str, sources: Path, folder: Path, *, kill_at: int | None = None, resume: bool = False
) -> int:
    """Run a tiny command in this process, killed at a boundary; its exit code.

    Without a kill the number of boundaries is in `boundaries.txt` afterwards.
    """
    os.environ["LIGHTSTRIDE_CACHE"] = str(folder / "cache")
    seen = 0

    def tell(*_: object) -> None:
        nonlocal seen
        if seen == kill_at:
            os._exit(KILLED)
        seen += 1

    with (
        open(folder / SAID, "a", buffering=1) as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        saved_often(),
        boundaries(folder, tell),
    ):
        code = cli.main(TINY[name].arguments(sources, folder, resume=resume))
    (folder / "boundaries.txt").write_text(str(seen))
    return code


def survived(
    name: str, sources: Path, folder: Path, kills: Sequence[Kill], whole: dict[str, str]
) -> str:
    """Kill a command so often, each time resumed, and let it end; the problem, empty if none."""
    folder.mkdir()
    for number, kill in enumerate(kills):
        at, resume = kill.boundary, number > 0
        seconds = kill.seconds if at is None else None
        code = forked(
            lambda at=at, resume=resume: run_tiny(  # type: ignore[misc]
                name, sources, folder, kill_at=at, resume=resume
            ),
            seconds,
        )
        if code == 0:
            break
        if code not in (KILLED, -signal.SIGKILL):
            return f"{name} {kill}: ended with {code}: {tail(folder)}"
    else:
        code = forked(lambda: run_tiny(name, sources, folder, resume=True))
        is_there = "exists already" in tail(folder) and not TINY[name].is_resumable
        if code != 0 and not is_there:
            return f"{name} {kills[0]}: resuming ended with {code}: {tail(folder)}"
    found = found_in(folder)
    if found != whole:
        other = [key for key in {*found, *whole} if found.get(key) != whole.get(key)]
        return f"{name} {kills[0]}: {sorted(other)} differ"
    left = [str(path) for path in folder.rglob(".*") if path != folder / "cache" / ".lock"]
    return f"{name} {kills[0]}: {left} is left" if left else ""


def tail(folder: Path) -> str:
    """The end of what was said."""
    return (folder / SAID).read_text()[-600:]


def kill_all(sources: Path, folder: Path, counts: dict[str, tuple[int, int]], seed: int) -> None:
    """For each command, so many kills at boundaries and so many at random moments.

    Writes a line for every problem to `problems.txt`, and the number of kills to `kills.txt`.
    """
    torch.set_num_threads(1)
    problems, done = [], 0
    draw = random.Random(seed)
    for name, (at_boundaries, at_moments) in counts.items():
        home = folder / name
        home.mkdir()
        (home / "whole").mkdir()
        start = time.perf_counter()
        assert forked(lambda name=name, home=home: run_tiny(name, sources, home / "whole")) == 0  # type: ignore[misc]
        taken = time.perf_counter() - start
        whole = found_in(home / "whole")
        there = int((home / "whole" / "boundaries.txt").read_text())
        chosen = draw.sample(range(there), min(there, at_boundaries))
        plans = [[Kill(boundary)] for boundary in chosen]
        for _ in range(at_moments):
            plans.append([Kill(seconds=draw.uniform(0, taken)) for _ in range(draw.choice((1, 2)))])
        for number, kills in enumerate(plans):
            problem = survived(name, sources, home / str(number), kills, whole)
            done += 1
            if problem:
                problems.append(problem)
                sys.stderr.write(f"{problem}\n")
            else:
                shutil.rmtree(home / str(number))
    (folder / "problems.txt").write_text("\n".join(problems))
    (folder / "kills.txt").write_text(str(done))
