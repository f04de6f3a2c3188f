"""The bench command: what it writes and tells."""

from pathlib import Path

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.bench.machine import Machine
from lightstride.checkpoint import save_checkpoint
from lightstride.commands import bench as run
from lightstride.commands.bench import bench
from lightstride.config import BenchConfig
from lightstride.generate import PlainDecoder
from lightstride.results import read_result


def decoder(**sizes: int) -> PlainDecoder:
    return PlainDecoder(tiny_llama(**sizes), byte_tokenizer())


def test_bench_writes_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "measure_machine", lambda device, dtype: Machine(1e10, 1e11))
    save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "dense")
    save_checkpoint(tiny_llama(num_kv_heads=1), byte_tokenizer(), tmp_path / "small")
    config = BenchConfig(
        model=str(tmp_path / "small"),
        against=str(tmp_path / "dense"),
        batch=(1, 2),
        prompt=(4,),
        new_tokens=3,
        repeats=2,
        device="cpu",
        dtype="float32",
        output=str(tmp_path / "out"),
    )
    result = bench(config)
    assert read_result(tmp_path / "out" / "result.json") == result
    numbers = result["numbers"]
    assert [load["batch"] for load in numbers["model"]["loads"]] == [1, 2]
    assert [load["kv_bytes"] for load in numbers["ratios"]] == [0.5, 0.5]
    assert result["config"]["dtype"] == "float32"
    out = capsys.readouterr().out
    assert "10.0 GB/s" in out
    assert out.count("| 2 × 4") == 3


def test_alone_there_are_no_ratios() -> None:
    config = BenchConfig(model="m", batch=(1,), prompt=(4,), new_tokens=3, repeats=1)
    numbers = run.measure(config, ["m"], [decoder()], Machine(1e10, 1e11))
    assert set(numbers) == {"machine", "model"}
    assert "ratio" not in run.load_tables(numbers)
