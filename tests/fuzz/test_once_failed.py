"""What once failed, at a place or in a way of its own, goes on ending in one line."""

import ast
import json
from functools import lru_cache
from pathlib import Path

import pytest

from fuzz.bench import Bench
from fuzz.damage import Damage

CASES = json.loads(Path(__file__).with_name("once_failed.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory):
    """A bench of each kind, made once."""
    return lru_cache(lambda name: Bench(name, tmp_path_factory.mktemp("bench") / "bench"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_ends_in_one_line(case: list, benches) -> None:
    name, file, command, steps = case
    assert benches(name).try_out(Damage(ast.literal_eval(steps)), file, command)
