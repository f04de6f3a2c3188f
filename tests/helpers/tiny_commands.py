"""Every command that writes, on models so tiny that it ends within seconds, and what it writes.

A run's checkpoint is written after every step, so that there is something to go on from.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

from helpers.prune_runs import make_inputs
from helpers.smash_runs import write_prompts
from helpers.smash_toys import sharp
from helpers.toys import byte_tokenizer, tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride import cli
from lightstride.checkpoint import save_checkpoint
from lightstride.commands import recover
from lightstride.commands.smashing import training
from lightstride.recover.loop import Recovery
from lightstride.smash.train.loop import TrainSettings
from lightstride.smash.train.start import train_settings

ON_CPU = ("--device", "cpu", "--dtype", "float32")
TIMED = (
    "second",
    "stages",
    "created",
    "commit",
    "forecast",
    "resume",
    "command",
    "output",
    "folder",
)
"""Keys of documents that tell of the run and not of what was found."""
IGNORED = (".work", ".txt", ".lock")


@dataclass(frozen=True)
class Tiny:
    """A command line by what it reads and where it writes."""

    flags: Callable[[Path], Sequence[str]]
    """All but the output, by the folder of sources."""
    output: str
    is_resumable: bool = False

    def arguments(self, sources: Path, folder: Path, *, resume: bool = False) -> list[str]:
        """The command line that writes into a folder."""
        more = ["--resume"] if resume and self.is_resumable else []
        return [*map(str, self.flags(sources)), "-o", str(folder / self.output), *more]


TINY: Mapping[str, Tiny] = {
    "prune": Tiny(
        lambda s: [
            *("prune", s / "model", "--sparsity", "0.3", "0.5", "--calibration", s / "text.jsonl"),
            *("--calibration-tokens", "256", "--search-tokens", "256", "--held-out-tokens", "64"),
            *("--window", "32", "--rounds", "2", "--generations", "2", "--offspring", "4"),
            *("--multiple", "8", "--preset", "demo", "--heal", "1", *ON_CPU),
        ],
        "out",
        is_resumable=True,
    ),
    "smash": Tiny(
        lambda s: [
            *("smash", s / "chat", "--prompts", s / "prompts.jsonl", "--preset", "demo"),
            *("--answer-tokens", "8", "--held-out", "0.3", "--steps", "3", "--row-tokens", "60"),
            *("--max-segment", "3", "--answer-batch", "4", *ON_CPU),
        ],
        "out",
        is_resumable=True,
    ),
    "recover": Tiny(
        lambda s: [
            *("recover", s / "cuts" / "30", "--minutes", "1000", "--text", s / "text.jsonl"),
            *("--tokens", "256", "--held-out-tokens", "64", "--window", "32", "--passes", "1"),
            *("--step-tokens", "64", *ON_CPU),
        ],
        "out",
        is_resumable=True,
    ),
    "export": Tiny(lambda s: ["export", s / "model"], "out.gguf"),
    "decilm": Tiny(lambda s: ["export", s / "wide", "--to", "decilm"], "out"),
    "evaluate": Tiny(
        lambda s: [
            *("evaluate", s / "model", "--perplexity", s / "text.jsonl", "--window", "32"),
            *("--every", "20", *ON_CPU),
        ],
        "out",
    ),
    "report": Tiny(lambda s: ["report", s / "cuts"], "out.html"),
    "convert": Tiny(
        lambda s: [
            *("evaluate", s / "model.gguf", "--perplexity", s / "text.jsonl", "--window", "32"),
            *("--every", "20", *ON_CPU),
        ],
        "out",
    ),
}


def make_sources(folder: Path) -> None:
    """All that the commands read."""
    make_inputs(folder)
    save_checkpoint(sharp(tiny_llama(tied=False)), byte_tokenizer(), folder / "chat")
    write_prompts(folder, 12)
    save_checkpoint(tiny_llama(num_channels=256), byte_tokenizer(), folder / "wide")
    save_checkpoint(tiny_llama(), trained_tokenizer(), folder / "whole")
    commands = (
        [*TINY["prune"].flags(folder), "--search", "none", "-o", folder / "cuts"],
        ["export", folder / "whole", "-o", folder / "model.gguf"],
    )
    for arguments in commands:
        assert cli.main(list(map(str, arguments))) == 0


@contextlib.contextmanager
def saved_often() -> Iterator[None]:
    """Trainings write their checkpoint after every step."""

    def settings(config: object) -> TrainSettings:
        return replace(train_settings(config), save_minutes=0.0)  # type: ignore[arg-type]

    with (
        mock.patch.object(training, "train_settings", settings),
        mock.patch.object(recover, "Recovery", partial(Recovery, save_minutes=0.0)),
    ):
        yield


def found_in(folder: Path) -> dict[str, str]:
    """Every file that a finished command left, by name, as a hash of what does not tell of time.

    Work folders are left out: what is in them is another after a kill, and nobody reads it.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): digest(path)
        for path in files
        if not any(part.endswith(IGNORED) for part in path.relative_to(folder).parts)
    }


def digest(path: Path) -> str:
    """Hash of a file, of a document without what tells of the run."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(timeless(json.loads(data)), sort_keys=True).encode()
    elif path.suffix == ".jsonl":
        lines = [timeless(json.loads(line)) for line in data.splitlines()]
        data = json.dumps(lines, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def timeless(value: object) -> object:
    """A document without the keys that tell of the run."""
    if isinstance(value, dict):
        return {
            key: timeless(each)
            for key, each in value.items()
            if not any(part in key for part in TIMED) and key not in ("sha256", "mtime_ns", "seen")
        }
    return [timeless(each) for each in value] if isinstance(value, list) else value
