"""A damaged file ends in a right answer or in one line and exit code 2: never in a traceback.

    pytest tests/fuzz                                            as many inputs as `make test` runs
    LIGHTSTRIDE_FUZZ=20000 pytest tests/fuzz --hypothesis-seed=7    more (`make fuzz`)
    python tests/fuzz/again.py KIND FILE COMMAND STEPS              one input again

Failures are collected, one of each cause; each prints how to run it again.  What once failed is
in `once_failed.json`.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.bench import Bench
from fuzz.damage import Damage
from fuzz.kinds import KINDS
from fuzz.once import FuzzError

INPUTS = int(os.environ.get("LIGHTSTRIDE_FUZZ", "2000"))
WEIGHTS = sum(kind.weight for kind in KINDS.values())


@pytest.mark.timeout(max(600, INPUTS // 4))
@pytest.mark.parametrize("name", KINDS)
def test_damage_ends_in_one_line(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bench = Bench(name, tmp_path)
    bench.check_whole()
    failures: dict[str, str] = {}

    @settings(
        max_examples=max(1, round(INPUTS * bench.kind.weight / WEIGHTS)),
        deadline=None,
        database=None,
        derandomize="LIGHTSTRIDE_FUZZ" not in os.environ,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        damage=bench.kind.damage,
        file=st.integers(0, len(bench.files) - 1),
        command=st.sampled_from(bench.kind.commands),
    )
    def run(damage: Damage, file: int, command: str) -> None:
        again = f'python tests/fuzz/again.py "{name}" {file} "{command}" {str(damage)!r}'
        (tmp_path / "again.txt").write_text(again)  # for an input that ends the process
        try:
            bench.try_out(damage, file, command)
        except FuzzError as failure:
            failures.setdefault(failure.kind, f"{failure}\n{again}")

    run()
    seed = request.config.getoption("--hypothesis-seed")
    told = "\n\n".join(failures.values())
    assert not failures, f"{len(failures)} causes, --hypothesis-seed={seed}:\n\n{told}"
