"""Command lines of tiny models, each in a process of its own; what they said and ended with."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from helpers.processes import context
from lightstride import cli
from lightstride.files import lock


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    process: int | None
    said: str
    """What it wrote to stderr."""

    @property
    def error(self) -> str:
        """The one line of its error; empty where it has none."""
        lines = [line for line in self.said.splitlines() if line.startswith("lightstride: error")]
        assert len(lines) <= 1, self.said
        return "".join(lines)


def call(arguments: Sequence[str], said: str, together: Barrier, one_is_over: Event) -> None:
    """Run one command line, and end the process with its code.

    Who has the lock goes on when the other is over: else a slow start would come after the end.
    """
    sign = lock.sign

    def signed(path: Path) -> None:
        sign(path)
        one_is_over.wait(60)

    lock.sign = signed
    together.wait(60)
    os.environ["LIGHTSTRIDE_CACHE"] = str(Path(said).parent / "cache")
    with (
        open(said, "w", buffering=1) as file,
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(file),
    ):
        code = cli.main(arguments)
    os._exit(code)


def run_together(commands: Sequence[Sequence[str]], folder: Path) -> list[Ended]:
    """Run command lines that begin at the same moment; how each ended."""
    folder.mkdir(exist_ok=True)
    together, one_is_over = context().Barrier(len(commands)), context().Event()
    processes: list[ForkServerProcess] = []
    for number, arguments in enumerate(commands):
        said = str(folder / f"said-{number}.txt")
        processes.append(
            context().Process(target=call, args=(arguments, said, together, one_is_over))
        )
    for process in processes:
        process.start()
    connection.wait([process.sentinel for process in processes], 300)
    one_is_over.set()
    ended = []
    for number, process in enumerate(processes):
        process.join(300)
        said = (folder / f"said-{number}.txt").read_text("utf-8")
        ended.append(Ended(process.exitcode, process.pid, said))
    return ended
