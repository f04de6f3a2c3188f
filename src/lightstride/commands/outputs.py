"""The folder that a command writes, and the result in it."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from lightstride.distributed import broadcast_object, rank
from lightstride.errors import ConfigError, OutputError
from lightstride.files.lock import locked
from lightstride.results import write_result

NOT_IDENTITY = ("output", "work", "resume", "json", "dry_run", "machine", "memory", "device_memory")
"""Flags that do not change what a run finds."""
RESULT = "result.json"


class WithOutput(Protocol):
    """The configuration of a command that writes a folder."""

    @property
    def output(self) -> str:
        """The folder."""
        ...

    def as_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        ...


class Resumable(WithOutput, Protocol):
    """The configuration of a command that goes on where a killed run stopped."""

    @property
    def resume(self) -> bool:
        """Whether to go on."""
        ...

    @property
    def work_folder(self) -> str:
        """Folder for what a killed run can go on from."""
        ...


@contextmanager
def only_writer(*outputs: str | Path) -> Iterator[None]:
    """Write these files and folders alone; the first of several processes holds their locks.

    Raises OutputError, on every process, where another run writes one of them.
    """
    with ExitStack() as stack:
        problem = None
        if rank() == 0:
            try:
                for output in dict.fromkeys(map(Path, outputs)):
                    stack.enter_context(locked(output))
            except OutputError as error:
                problem = str(error)
        problem = broadcast_object(problem)
        if problem is not None:
            raise OutputError(problem)
        yield


@contextmanager
def resumable_writer(config: Resumable) -> Iterator[None]:
    """Write output and work folder of a resumable run alone; what is wrong with them first."""
    check_apart(config.output, "--work", config.work_folder)
    with only_writer(config.output, config.work_folder):
        check_output(config)
        yield


@contextmanager
def result_writer(config: WithOutput) -> Iterator[None]:
    """Write a folder for `result.json` alone; OutputError first where it cannot be written."""
    output = Path(config.output)
    with only_writer(output):
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output} is a file; -o must be a folder")
        for path in (output, output / RESULT):
            if path.exists() and not os.access(path, os.W_OK):
                raise OutputError(f"{path} cannot be written; -o must be a folder that can")
        if (output / RESULT).is_dir():
            raise OutputError(f"{output / RESULT} is a folder; name another -o")
        yield


@contextmanager
def printed(*texts: str) -> Iterator[list[str]]:
    """Print what was found when the block, which saves it, is over: whether that went well or not.

    The block may add texts.  In this order a reader that has seen enough of stdout keeps nothing
    from being saved.
    """
    told = [*texts]
    try:
        yield told
    finally:
        sys.stdout.write("\n".join(told).strip() + "\n" if told else "")


def check_apart(output: str, flag: str, other: str) -> None:
    """ConfigError where the folder of a flag lies in the output, or the output in it."""
    whole, part = Path(output).resolve(), Path(other).resolve()
    if whole == part or whole in part.parents or part in whole.parents:
        raise ConfigError(
            f"{flag} {other} and -o {output} are not allowed: neither may be inside the other"
        )


def check_output(config: Resumable) -> None:
    """OutputError unless the output folder is new or empty, or has parts of the run to resume."""
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; -o must be a new or empty folder")
    if output.exists() and any(output.iterdir()) and not config.resume:
        raise OutputError(f"{output} is not empty; -o must be a new or empty folder")


def identity(config: WithOutput, *other: str) -> dict[str, object]:
    """The flags that decide what a run finds: all but NOT_IDENTITY and `other`."""
    left_out = {*NOT_IDENTITY, *other}
    return {key: value for key, value in config.as_dict().items() if key not in left_out}


def save_result(
    kind: str,
    config: WithOutput,
    numbers: Mapping[str, object],
    *,
    seed: int | None = None,
    data: Mapping[str, str] | None = None,
    **settings: str,
) -> dict[str, object]:
    """Write `result.json` into the output folder, with this process's command line; the result.

    `settings` replace fields of the configuration by the values that `auto` stood for.  Where the
    output cannot be written the result goes to the system's folder for temporary files, and the
    OutputError says where it is.
    """

    def write(path: Path) -> dict[str, object]:
        return dict(
            write_result(
                path,
                kind=kind,
                numbers=numbers,
                config={**config.as_dict(), **settings},
                command=["lightstride", *sys.argv[1:]],
                seed=seed,
                data=data or {},
            )
        )

    try:
        return write(Path(config.output) / RESULT)
    except OutputError as error:
        spare = Path(tempfile.gettempdir()) / f"lightstride-{kind}-{os.getpid()}.json"
        try:
            write(spare)
        except OutputError as other:
            raise OutputError(f"{error}; the numbers are printed above") from other
        raise OutputError(f"{error}; what was measured is in {spare}") from error
