"""`lightstride cache`: what it lists, what it deletes, what it says of damage."""

import json
from pathlib import Path

import pytest

from lightstride import cli
from lightstride.models.opening.conversions import Source, kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in a cache of its own."""
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "toy.gguf"
    path.write_bytes(b"model")
    source = Source(name="toy", parts=(path,))
    return kept(source, 1, lambda folder: (folder / "a").write_bytes(b"copy"))


def test_lists_what_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache"]) == 0
    said = capsys.readouterr().out
    assert folder.name in said
    assert "sound" in said
    assert cli.main(["cache", "--json", "--verify"]) == 0
    (copy,) = json.loads(capsys.readouterr().out)["copies"]
    assert (copy["name"], copy["state"]) == (folder.name, "sound")
    assert copy["source"].endswith("toy.gguf")


def test_an_empty_cache_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "none"))
    assert cli.main(["cache"]) == 0
    assert "0.00 of 20 GB" in capsys.readouterr().out


def test_damage_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(b"COPY")
    assert cli.main(["cache", "--verify"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"lightstride: error: damaged: {folder.name}; ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("names", [[], ["toy"]])
def test_clears(names: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "--clear", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == [folder.name]
    assert not folder.exists()


def test_a_name_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "--clear", "toys"]) == 2
    assert f"there is no such copy; there is: {folder.name}" in capsys.readouterr().err
    assert folder.is_dir()
