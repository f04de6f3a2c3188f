"""benchmarks/memory_speed.py on a toy: what the bytes allow, and what is reached of it."""

import json
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark
from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.memory.cache import full_plan
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.plan_files import MemoryFile, write_plans

benchmark = load_benchmark("memory_speed")


def test_every_plan_has_its_speed_and_what_its_bytes_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tied=False)
    save_checkpoint(base, byte_tokenizer(), tmp_path / "base")
    model = toy(base)
    model.config.base = str(tmp_path / "base")
    save_checkpoint(model, byte_tokenizer(), tmp_path / "smashed")
    blocks = ((Keep(0, 32), Keep(8, 32, 4)),) * 2
    plan = MemoryPlan(blocks=blocks, head_dim=8, base=full_plan(base).base)
    write_plans(tmp_path / "smashed", MemoryFile({0.5: plan}, 0.5), {})
    given = ["--plan", str(tmp_path / "smashed"), "--contexts", "600", "--batches", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["memory_speed.py", *given, "--steps", "3"])
    benchmark.main()
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(numbers) == {"600 tokens, batch 1", "600 tokens, batch 2"}
    for found in numbers.values():
        assert list(found) == ["1", "1 int8", "0.5", "0.5 int8"]
        assert found["1"]["speed"] == found["1"]["allowed"] == 1
        assert found["0.5"]["allowed"] > 1
        assert found["0.5"]["cache_mb"] < 0.5 * found["1"]["cache_mb"]
        assert found["0.5 int8"]["cache_mb"] < found["0.5"]["cache_mb"]
