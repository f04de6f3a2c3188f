"""Run one input of the fuzzer again: `again.py KIND FILE COMMAND STEPS`, as a failure prints it."""

import ast
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

from fuzz.bench import Bench
from fuzz.damage import Damage


def main(name: str, file: str, command: str, steps: str) -> str:
    """The command's error, empty for none; FuzzError is raised as the fuzzer found it."""
    with tempfile.TemporaryDirectory() as folder:
        return Bench(name, Path(folder)).try_out(
            Damage(ast.literal_eval(steps)), int(file), command
        )


if __name__ == "__main__":
    sys.stdout.write(f"as it should be: {main(*sys.argv[1:]) or 'an answer'}\n")
