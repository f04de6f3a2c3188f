"""`lightstride doctor`: one screen, the same as a document, and a model's hashes."""

import json
from pathlib import Path

import pytest
import torch

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.bench.machine import Machine
from lightstride.commands import doctor
from lightstride.models.fingerprint import fingerprint


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates without the seconds that they take."""

    def rates(_: torch.device, dtype: torch.dtype) -> Machine:
        return Machine(2e10, 1e11 if dtype == torch.float32 else 3e11)

    monkeypatch.setattr(doctor, "measure_machine", rates)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_fits_on_one_screen(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(model)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) <= 24
    assert "reads 20.0 GB/s, products 100 (float32) and 300 GFLOP/s (bfloat16)" in said.out
    assert fingerprint(tiny_llama()) in said.out
    assert said.err == ""


def test_the_document_holds_all_of_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # The build (+cu130) is part of the module's own version alone.
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["model"]["weights"] == fingerprint(tiny_llama())
    assert found["model"]["grafts"] == {}
    assert found["devices"][0] == "cpu"
    assert found["cache"]["limit_bytes"] == 20e9


def test_built_in_grafts_have_a_hash_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "load_model", lambda *_, **__: tiny_llama())
    assert cli.main(["doctor", "smollm2-135m-smash", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert found["base"] == "smollm2-135m"
    assert len(found["grafts"]["model.safetensors"]) == 64


def test_what_is_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for extra in doctor.EXTRAS:
        assert f"pip install 'lightstride[{extra}]'" in said
