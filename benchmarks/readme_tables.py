"""Put the numbers of results/*.json into the tables of the README and the docs.

    python benchmarks/readme_tables.py            rewrite the tables
    python benchmarks/readme_tables.py --check    say which are out of date; exit code 1

A table stands between `<!-- results: NAME -->` and `<!-- end -->`.  `results/tables.json` says of
each NAME its columns (a title, a dotted path into `numbers`, a format, and a factor if needed) and
its rows (a label, a file of results/, and where in its numbers the row starts).  A row's `cells`
say by column title where a cell comes from another file, place or key; null is an empty one.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from lightstride.results import markdown_table, read_result

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(name: str, results: Path = ROOT / "results") -> str:
    """One table in Markdown."""
    table = json.loads((results / "tables.json").read_text("utf-8"))[name]
    columns = table["columns"]
    rows = []
    for row in table["rows"]:
        rows.append([row["label"]])
        for column in columns:
            own = row.get("cells", {}).get(column["title"], {})
            if own is None:
                rows[-1].append(cell(None, column))
                continue
            origin = {"key": column["key"], **row, **own}
            document = read_result(results / origin["file"])["numbers"]
            numbers = look_up(document, origin.get("at", ""))
            rows[-1].append(cell(look_up(numbers, origin["key"]), column))
    return markdown_table([table["title"], *(column["title"] for column in columns)], rows)


def look_up(numbers: Any, path: str | list[str]) -> Any:
    """What a dotted path leads to, or its parts; parts that are digits count in lists."""
    for part in filter(None, path.split(".") if isinstance(path, str) else path):
        numbers = numbers[int(part)] if isinstance(numbers, list) else numbers[part]
    return numbers


def cell(value: Any, column: dict[str, Any]) -> str:
    """A value as its column shows it; a dash where there is none."""
    if value is None:
        return "–"
    text: str = column["format"].format(value * column.get("factor", 1))
    return text


def rewrite(page: str, results: Path = ROOT / "results") -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{render(block[2], results)}\n{block[3]}", page)


def main() -> int:
    """Rewrite or check all pages; the exit code."""
    stale = [page for page in PAGES if rewrite(text := page.read_text("utf-8")) != text]
    for page in stale:
        if "--check" in sys.argv:
            print(f"{page.relative_to(ROOT)}: tables differ from results/", file=sys.stderr)
        else:
            page.write_text(rewrite(page.read_text("utf-8")), "utf-8")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
