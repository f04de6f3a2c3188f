"""The folder that a command writes, and the result in it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from lightstride.errors import OutputError
from lightstride.results import write_result

NOT_IDENTITY = ("output", "work", "resume", "json", "dry_run", "machine")
"""Flags that do not change what a run finds."""


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

    `settings` replace fields of the configuration by the values that `auto` stood for.
    """
    return dict(
        write_result(
            Path(config.output) / "result.json",
            kind=kind,
            numbers=numbers,
            config={**config.as_dict(), **settings},
            command=["lightstride", *sys.argv[1:]],
            seed=seed,
            data=data or {},
        )
    )
