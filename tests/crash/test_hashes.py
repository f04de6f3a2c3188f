"""Whatever a run writes into its work folder, and reads again, carries a hash."""

from pathlib import Path

import pytest

from helpers.tiny_commands import TINY, make_sources, saved_often
from lightstride import cli

HASHED_ELSEWHERE = ("scores/*.safetensors",)
"""Files whose hash is in an index."""


def test_every_file_of_a_work_folder_has_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    make_sources(tmp_path)
    for name in ("prune", "smash", "recover", "convert"):
        with saved_often():
            assert cli.main(TINY[name].arguments(tmp_path, tmp_path / name)) == 0
    files = [path for path in tmp_path.glob("*/out.work/**/*") if path.is_file()]
    files += (tmp_path / "cache").glob("converted/*/conversion.json")
    assert len({path.name for path in files}) > 10
    for path in files:
        if not any(path.match(pattern) for pattern in HASHED_ELSEWHERE):
            lines = (
                path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
            )
            assert all(b'"sha256"' in line for line in lines), path
