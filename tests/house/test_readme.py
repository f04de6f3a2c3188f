"""The README tells the truth: its tables are the results', its commands run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark
from lightstride import cli
from lightstride.results import read_result, write_result

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


tables = load_benchmark("readme_tables")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_results_say(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables.rewrite(text) == text, "run: python benchmarks/readme_tables.py"


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    def measured(perplexity: float | None) -> None:
        write_result(
            tmp_path / "a.json",
            kind="prune",
            numbers={"sizes": [{"perplexity": perplexity}]},
            config={},
            command=["x"],
            seed=0,
            data={},
        )

    column = {"title": "Perplexity", "key": "perplexity", "format": "{:.2f}"}
    row = {"label": "25%", "file": "a.json", "at": "sizes.0"}
    table = {"title": "Model", "columns": [column], "rows": [row]}
    (tmp_path / "tables.json").write_text(json.dumps({"x": table}))
    measured(20.0)
    page = tables.rewrite("# T\n<!-- results: x -->\n<!-- end -->\n", tmp_path)
    assert "| 25%   |      20.00 |" in page
    assert tables.rewrite(page, tmp_path) == page
    measured(20.5)
    assert tables.rewrite(page, tmp_path) != page
    measured(None)
    assert "–" in tables.rewrite(page, tmp_path)


def test_every_number_in_a_readme_table_comes_from_the_results() -> None:
    text = tables.BLOCK.sub("", (ROOT / "README.md").read_text("utf-8"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")]
    assert not [
        cell for cell in cells if re.fullmatch(r"[~<>]?[\d.,]+ ?(%|x|M|MB|s|tokens/s)?", cell)
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.name)
def test_every_result_is_whole(path: Path) -> None:
    if path.name != "tables.json":
        read_result(path)


def commands() -> list[str]:
    """Every `lightstride` command line in a code block of a page."""
    found = []
    for page in PAGES:
        for block in re.findall(
            r"```(?:sh|bash|console)\n(.*?)```", page.read_text("utf-8"), re.DOTALL
        ):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if line.startswith("lightstride ")]
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert cli.parse(words[1:]) is not None


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"`make (\w+)`", page.read_text("utf-8")):
            assert f"\n{target}:" in makefile, target
