"""A damaged file ends in a right answer or in one line and exit code 2: never in a traceback.

    pytest tests/fuzz            as many inputs as `make test` runs
    LIGHTSTRIDE_FUZZ=20000 pytest tests/fuzz --hypothesis-seed=7    more (`make fuzz`)

A failure prints the kind, the damage and how to run it again.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.damage import Damage
from fuzz.kinds import KINDS, TEXTS, Kind, write_texts
from lightstride import cli

INPUTS = int(os.environ.get("LIGHTSTRIDE_FUZZ", "2000"))
WEIGHTS = sum(kind.weight for kind in KINDS.values())
SECONDS = 20
MEMORY = 1 << 30
"""What one input may take above what the process has."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A ceiling that stops bombs, and a check of what was really taken."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start = peak_memory()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert peak_memory() - start < MEMORY


def peak_memory() -> int:
    """Most bytes that the process has held since the peak was last reset."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def too_long(_signal: int, _frame: FrameType | None) -> None:
    raise AssertionError(f"more than {SECONDS} s of processor time")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_damage_ends_in_one_line(name: str, folder: Path, bounded_memory: None) -> None:
    kind = KINDS[name]
    home = folder / name
    home.mkdir()
    write_texts(home)
    source = kind.build(home)
    path = source / kind.file if kind.file else source
    whole = path.read_bytes()
    count = round(INPUTS * kind.weight / WEIGHTS / len(kind.commands))

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage=kind.damage)
    def run(damage: Damage) -> None:
        path.write_bytes(damage(whole))
        for command in kind.commands:
            check(command, name, kind, source, home)

    run()
    path.write_bytes(whole)
    for command in kind.commands:
        assert check(command, name, kind, source, home) == 0, "the undamaged source"


def check(command: tuple[str, ...], name: str, kind: Kind, source: Path, home: Path) -> int:
    """Run one command; what it may do is checked, and its exit code comes back."""
    texts = home / TEXTS.get(name, "texts.jsonl")
    arguments = [word.format(source=source, out=home / "out", texts=texts) for word in command]
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        for made in home.glob("out*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert code in (0, 2)
    if code == 0:
        json.loads(out.getvalue(), parse_constant=refuse)
        return code
    errors = [line for line in err.getvalue().splitlines() if line.startswith("lightstride: error")]
    assert len(errors) == 1, err.getvalue()
    assert out.getvalue() == ""
    return code


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a result")
