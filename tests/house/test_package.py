"""The wheel, installed where nothing else of ours is, prunes and answers."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
PRUNE = (
    "--sparsity 0.25 --preset demo --window 64 --calibration-tokens 256 --search-tokens 256 "
    "--held-out-tokens 256 --search none --rounds 1"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """The dependencies are this environment's; the package is the wheel's alone."""
    dist, home = tmp_path / "dist", tmp_path / "venv"
    run(sys.executable, "-m", "build", "-o", str(dist), str(ROOT))
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", str(home))
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(home / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel))
    command = str(home / "bin" / "lightstride")
    where = "import lightstride; print(lightstride.__file__)"
    assert str(site) in run(python, "-c", where, cwd=tmp_path)
    assert "prune" in run(command, "--help", cwd=tmp_path)
    save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "toy")
    run(command, "prune", "toy", "-o", "small", *PRUNE.split(), cwd=tmp_path)
    assert run(command, "generate", "small", "-p", "ab", "--max-new-tokens", "2", cwd=tmp_path)


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
