"""The page: answers first, alone, whole, and readable on a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.reports import judged, write, write_runs
from lightstride.commands.report import report
from lightstride.config import ReportConfig
from lightstride.report.facts import read_folders

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PHONE = 360
DESKTOP = 1200


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path)


@pytest.fixture
def page(runs: Path) -> Path:
    report(ReportConfig(folder=(str(runs),), output=str(runs / "page" / "report.html")))
    return runs / "page" / "report.html"


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_answer_stands_first(page: Path) -> None:
    text = page.read_text("utf-8")
    answer = html.unescape(re.findall(r'<p class="answer">(.*)</p>', text)[0])
    assert answer == (
        "With 20.5% fewer parameters than smollm2-135m, pruned/25 retains 90.9% of "
        "smollm2-135m's accuracy (50.0% against 55.0%, the mean of 2 tasks), has a perplexity of "
        "27.00 against 19.78 and decodes 1.25 times as fast."
    )
    assert text.index('class="answer"') < text.index("<table") < text.index("<img")


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text("utf-8")
    elements = Elements(text).found
    links = [a.get("src") or a.get("href") or "" for _, a in elements if "src" in a or "href" in a]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "http" not in text
    assert not [tag for tag, _ in elements if tag == "script"]


def test_every_picture_has_words_and_a_file(page: Path) -> None:
    images = [a for tag, a in Elements(page.read_text("utf-8")).found if tag == "img"]
    names = {"width-pruned-25", "width-pruned-50", "search-1", "quality", "speed", "steps"}
    assert {path.stem.removeprefix("report-") for path in page.parent.glob("*.png")} == names
    assert len(images) == len(names)
    for image in images:
        assert len(image["alt"] or "") > 40
        assert re.search(r"\d", image["alt"] or "")


def test_tables_have_parts_above_their_mean(page: Path) -> None:
    text = page.read_text("utf-8")
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    cells = [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]
    assert ["arc_easy", "45.0", "50.0", "-5.0 ± 0.8", "90.0 ± 1.2", "80.0"] in cells
    assert ["mean of 2", "50.0", "55.0", "-5.0 ± 0.8", "90.9 ± 1.2", "83.3"] in cells
    models = next(row for row in cells if row[:1] == ["pruned/25"])
    assert models == [
        "pruned/25",
        "107.0",
        "204",
        "25.0%",
        "27.00",
        "26.10",
        "50.0",
        "30.0",
        "33.3",
    ]
    assert "lightstride evaluate &#x27;a model&#x27;" in text


def test_results_of_other_kinds_only_show_where_they_come_from(tmp_path: Path) -> None:
    write(tmp_path, "smash", {"tokens_per_step": 1.3})
    report(ReportConfig(folder=(str(tmp_path),), output=str(tmp_path / "report.html")))
    assert "1 results of lightstride smash" in (tmp_path / "report.html").read_text("utf-8")


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    numbers = {"model": judged(name, 1000, 9.0, 0.5)}
    write(tmp_path, "evaluate", numbers, model=name, perplexity="$answer")
    report(ReportConfig(folder=(str(tmp_path),), output=str(tmp_path / "report.html")))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_search_is_shown_once(runs: Path) -> None:
    """A work folder beside the output, or the same folder named twice, adds nothing."""
    work = runs / "pruned.work"
    work.mkdir()
    text = (runs / "pruned" / "search.jsonl").read_text()
    (work / "search.jsonl").write_text(text)
    facts = read_folders([str(runs), str(runs / "bench" / ".."), str(runs / "bench")])
    assert list(facts.searches) == [str(runs / "pruned")]
    assert facts.models == read_folders([str(runs)]).models
    whole = text.rpartition("\n")[0]
    (work / "search.jsonl").write_text(f"{whole}\n{whole.splitlines()[-1]}\n")
    (longer,) = read_folders([str(runs)]).searches.values()
    assert len(longer) == 1 + len(facts.searches[str(runs / "pruned")])


FRAME = """<!doctype html><title>frame</title>
<iframe id="f" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  const images = [...page.images].map(i => i.complete && i.naturalWidth > 0 && i.clientWidth > 0);
  const small = [...page.querySelectorAll("p, td, th, figcaption")]
    .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length;
  const scroll = root.scrollWidth, width = root.clientWidth;
  document.title = JSON.stringify({{scroll, width, images, small}});
}});
</script>"""


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine (apt-get install chromium)"
)
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_in_a_browser(page: Path, width: int) -> None:
    assert BROWSER is not None
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=html.escape(page.read_text("utf-8"))), "utf-8")
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert found["images"] == [True] * 6
    assert found["scroll"] <= found["width"] <= width
    assert found["small"] == 0
