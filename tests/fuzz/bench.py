"""A workbench: one kind's folder, in which inputs are tried one after the other."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from fuzz.commands import command_line
from fuzz.damage import Damage
from fuzz.kinds import KINDS
from fuzz.once import FuzzError, run_once
from lightstride import results
from lightstride.bench.machine import Machine
from lightstride.commands import doctor
from lightstride.evaluate import loops
from lightstride.prune import forecast
from lightstride.serve.run import Server


class Bench:
    """The undamaged folder of a kind, and a copy of it that is damaged again and again."""

    def __init__(self, name: str, folder: Path) -> None:
        self.kind = KINDS[name]
        self.home, self.whole = folder / "home", folder / "whole"
        self.home.mkdir(parents=True)
        self.kind.build(self.home)
        shutil.copytree(self.home, self.whole, symlinks=True)
        self.files = [
            path.relative_to(self.whole)
            for pattern in self.kind.files
            for path in sorted(self.whole.glob(pattern))
            if path.is_file()
        ]

    def try_out(self, damage: Damage, file: int, command: str) -> str:
        """Damage one of the files and run a command; its error, empty for none."""
        path = self.files[file % len(self.files)]
        try:
            damage.apply(self.home / path)
            with quick(), cache_in(self.home):
                return run_once(command_line(command, self.home), self.home)
        finally:
            self.restore(path)

    def restore(self, path: Path) -> None:
        """Make the copy as the undamaged folder is."""
        if self.kind.is_written:
            shutil.rmtree(self.home)
            shutil.copytree(self.whole, self.home, symlinks=True)
            return
        kept = {each.name for each in (self.whole / path).parent.iterdir()}
        for each in (self.home / path).parent.iterdir():
            if each.name not in kept or each.name == path.name:
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        shutil.rmtree(self.home / "cache", ignore_errors=True)
        (self.home / path).parent.parent.joinpath("outside").unlink(missing_ok=True)
        shutil.copy2(self.whole / path, self.home / path)

    def check_whole(self) -> None:
        """Raise FuzzError unless every command takes the undamaged folder."""
        for command in dict.fromkeys(self.kind.commands):
            with quick(), cache_in(self.home):
                told = run_once(command_line(command, self.home), self.home)
            if told:
                raise FuzzError("the undamaged folder is refused", f"{command}: {told}")
            self.restore(self.files[0])


@contextmanager
def cache_in(home: Path) -> Iterator[None]:
    """Converted copies beside what they are made from."""
    with patch.dict(os.environ, {"LIGHTSTRIDE_CACHE": str(home / "cache")}):
        yield


def measured(_: torch.device, dtype: torch.dtype) -> Machine:
    return Machine(2e10, 1e11 if dtype == torch.float32 else 3e11)


def end_at_once(server: Server, sockets: object) -> None:
    server.service.close()


@contextmanager
def quick() -> Iterator[None]:
    """Without what takes time and reads no damaged file: measuring, serving, asking git."""
    with (
        patch.object(doctor, "measure_machine", measured),
        patch.object(Server, "run", end_at_once),
        patch.object(results, "commit", lambda: None),
        patch.object(forecast, "gram_rate", lambda *_: 1e10),
        patch.object(forecast, "solve_rate", lambda *_: 1e10),
        patch.object(loops, "ANSWER_TOKENS", 4),
    ):
        yield
