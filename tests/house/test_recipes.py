"""The recipes name files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_of_the_recipes_exists() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    named = {name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name}
    assert len(named) > 15
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
