"""benchmarks/gpu.py: it runs on a toy, and says where there is no accelerator."""

import sys
from pathlib import Path

import pytest
import torch

from helpers.benchmark import load_benchmark
from lightstride.results import read_result

gpu = load_benchmark("gpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_toy_is_measured_whole(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "gpu.json"
    words = ["gpu.py", "--tiny", "--device", device, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    assert gpu.main() == 0
    numbers = read_result(output)["numbers"]
    for stage in ("statistics", "generation", "decode dense", "decode cut", "decode smashed"):
        assert numbers[stage]["seconds"] > 0
    assert len(numbers["generation"]["fitness"]) == gpu.CANDIDATES
    assert min(numbers["generation"]["fitness"]) > 0


@pytest.mark.gpu
def test_fitness_on_the_accelerator_is_that_of_the_cpu(tmp_path: Path) -> None:
    model = gpu.random_llama("tiny", "cpu")
    torch.manual_seed(0)
    _, here = gpu.pruned(model, "tiny", tmp_path / "cpu")
    torch.manual_seed(0)
    _, there = gpu.pruned(model.to("cuda"), "tiny", tmp_path / "cuda")
    expected = pytest.approx(here["generation"]["fitness"], rel=0.05)
    assert there["generation"]["fitness"] == expected


def test_without_an_accelerator_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--check"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == f"{gpu.NO_ACCELERATOR}\n"
