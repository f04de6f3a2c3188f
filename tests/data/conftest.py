"""A file of documents."""

import json
from pathlib import Path

import pytest

from helpers.texts import TEXTS


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS))
    return str(path)
