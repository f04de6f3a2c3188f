"""How benchmarks end: one JSON document as the last line of stdout, and a file with its origin."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lightstride.errors import LightstrideError
from lightstride.results import write_result


def add_output(parser: argparse.ArgumentParser) -> None:
    """The flag that keeps the numbers."""
    parser.add_argument("--output", type=Path, help="also write them, with their origin, here")


def run_or_say(run: Callable[[argparse.Namespace], None], flags: argparse.Namespace) -> None:
    """Run a benchmark on two threads; a user's mistake ends it in one line."""
    torch.set_num_threads(2)
    try:
        run(flags)
    except LightstrideError as error:
        sys.exit(f"error: {error}")


def finish(kind: str, numbers: Mapping[str, object], flags: argparse.Namespace, seed: int) -> None:
    """Print the numbers and, if `--output` was given, write them as a result."""
    if flags.output is not None:
        given = [v for value in vars(flags).values() for v in listed(value)]
        paths = [value for value in given if isinstance(value, Path)]
        texts = [path for path in paths if path.is_file() and path != flags.output]
        data = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in texts}
        keep(flags.output, kind, numbers, flags, seed, data)
    print(json.dumps(numbers))


def keep(
    path: Path,
    kind: str,
    numbers: Mapping[str, object],
    flags: argparse.Namespace,
    seed: int | None,
    data: Mapping[str, str],
) -> None:
    """Write numbers with their origin, which names no folder of this machine."""
    write_result(
        path,
        kind=kind,
        numbers=numbers,
        config={key: named(value) for key, value in vars(flags).items()},
        command=["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(short, sys.argv[1:])],
        seed=seed,
        data=data,
    )


def path_or_name(text: str) -> Path | str:
    """The type of a flag that is a file or folder, or else the name of something."""
    return Path(text) if Path(text).exists() else text


def listed(value: object) -> list[object]:
    """A flag's values, whether it takes one or several."""
    return list(value) if isinstance(value, list) else [value]


def named(value: object) -> object:
    """A flag's value without the folders of this machine."""
    if isinstance(value, list):
        return [named(each) for each in value]
    if isinstance(value, dict):
        return {key: named(each) for key, each in value.items()}
    if isinstance(value, str):
        return short(value)
    return value.name if isinstance(value, Path) else value


def short(argument: str) -> str:
    """An argument, `NAME=PATH` or any other, without the folders of this machine."""
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else argument
