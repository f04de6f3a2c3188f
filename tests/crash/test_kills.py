"""A command that is killed anywhere, or whose disk fails, is resumed to the same bits.

pytest tests/crash/test_kills.py                         a few kills, as `make test` has them
LIGHTSTRIDE_KILLS=500 pytest tests/crash/test_kills.py -s    so many (`make kills`), SEED=n others
"""

import os
from pathlib import Path

import pytest

from helpers.kills import fail_all, kill_all
from helpers.processes import run_ranks
from helpers.tiny_commands import make_sources

KILLS = int(os.environ.get("LIGHTSTRIDE_KILLS", "10"))
SEED = int(os.environ.get("SEED", "0"))
SHARES = {"prune": 0.4, "smash": 0.25, "recover": 0.15, "export": 0.1, "convert": 0.1}
"""Of all kills, by command."""
FAULTS = int(os.environ.get("LIGHTSTRIDE_FAULTS", "16"))
"""Full disks, read-only disks and signals, of all commands together."""
SECONDS = max(600, 60 * KILLS)
MOMENTS = 0.2
"""Share of kills at random moments; the others are at boundaries."""


@pytest.mark.timeout(SECONDS)
def test_killed_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    sources, folder = tmp_path / "sources", tmp_path / "runs"
    sources.mkdir()
    folder.mkdir()
    make_sources(sources)
    counts = {}
    for name, share in SHARES.items():
        moments = round(KILLS * share * MOMENTS)
        counts[name] = (round(KILLS * share) - moments, moments)
    run_ranks(kill_all, 1, sources, folder, counts, SEED, seconds=SECONDS)
    assert tell(folder, "kills were resumed to the same bits") == ""


@pytest.mark.timeout(SECONDS)
def test_failing_disks_and_signals_end_in_one_line(tmp_path: Path) -> None:
    sources, folder = tmp_path / "sources", tmp_path / "runs"
    sources.mkdir()
    folder.mkdir()
    make_sources(sources)
    run_ranks(fail_all, 1, sources, folder, FAULTS, SEED, seconds=SECONDS)
    assert tell(folder, "disks and signals ended in one line, and later in the same bits") == ""


def tell(folder: Path, what: str) -> str:
    """Print how many of all trials ended well; the problems of the others."""
    problems = (folder / "problems.txt").read_text()
    done = int((folder / "done.txt").read_text())
    bad = len(problems.split("\n\n")) if problems else 0
    print(f"\n{done - bad} of {done} {what} (SEED={SEED})")
    return problems
