"""A command that is killed anywhere is resumed to the same bits, and leaves nothing behind.

pytest tests/crash/test_kills.py                         a few kills, as `make test` has them
LIGHTSTRIDE_KILLS=500 pytest tests/crash/test_kills.py -s    so many (`make kills`), SEED=n others
"""

import os
from pathlib import Path

import pytest

from helpers.kills import kill_all
from helpers.processes import run_ranks
from helpers.tiny_commands import make_sources

KILLS = int(os.environ.get("LIGHTSTRIDE_KILLS", "20"))
SEED = int(os.environ.get("SEED", "0"))
SHARES = {"prune": 0.4, "smash": 0.25, "recover": 0.15, "export": 0.1, "convert": 0.1}
"""Of all kills, by command."""
MOMENTS = 0.2
"""Share of kills at random moments; the others are at boundaries."""


@pytest.mark.timeout(3600)
def test_killed_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    sources, folder = tmp_path / "sources", tmp_path / "runs"
    sources.mkdir()
    folder.mkdir()
    make_sources(sources)
    counts = {}
    for name, share in SHARES.items():
        moments = round(KILLS * share * MOMENTS)
        counts[name] = (round(KILLS * share) - moments, moments)
    run_ranks(kill_all, 1, sources, folder, counts, SEED)
    problems = (folder / "problems.txt").read_text().splitlines()
    done = int((folder / "kills.txt").read_text())
    print(f"\n{done - len(problems)} of {done} kills were resumed to the same bits (SEED={SEED})")
    assert not problems
