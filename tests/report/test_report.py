"""The report: one page that stands alone, says the answer first, and reads well on a phone."""

import html
import json
import random
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightstride.commands.report import report
from lightstride.config import ReportConfig
from lightstride.errors import ConfigError, DataError
from lightstride.report.charts import frontier, search_curve
from lightstride.report.facts import Block, read_folders, read_plan, read_search
from lightstride.results import write_result

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
DENSE_PLAN = "|".join(["3x3,1536"] * 30)
PHONE = 360
DESKTOP = 1200


def write(folder: Path, kind: str, numbers: Mapping[str, object], **config: object) -> None:
    write_result(
        folder / "result.json",
        kind=kind,
        numbers=numbers,
        config=config,
        command=["lightstride", kind, "a model"],
        seed=0,
        data={"text.txt": "ab" * 32},
    )


def judged(source: str, parameters: int, perplexity: float, accuracy: float) -> dict[str, object]:
    score = {"stderr": 0.01, "num_items": 500}
    return {
        "source": source,
        "parameters": parameters,
        "weight_bytes": 2 * parameters,
        "perplexity": {"value": perplexity, "nll": 3.0, "num_tokens": 30705},
        "tasks": {
            "arc_easy": {"value": accuracy, **score},
            "piqa": {"value": accuracy + 0.1, **score},
        },
        "warnings": [],
    }


def retained(score: float, against: float) -> dict[str, float]:
    return {
        "score": score,
        "against": against,
        "difference": score - against,
        "difference_stderr": 0.008,
        "ratio": score / against,
        "ratio_stderr": 0.012,
        "above_chance": (score - 0.25) / (against - 0.25),
    }


def load(batch: int, speed: float) -> dict[str, object]:
    return {
        "batch": batch,
        "prompt": 32,
        "first_token_seconds": {"median": 1 / speed, "low": 0.9 / speed, "high": 1.2 / speed},
        "decode_tokens_per_second": {"median": speed, "low": 0.9 * speed, "high": 1.1 * speed},
        "tokens_per_step": 1.0 + batch / 10,
    }


def pruned_plan(draw: random.Random) -> str:
    heads = [f"{draw.randint(1, 3)}x{draw.randint(1, 3)}" for _ in range(30)]
    return "|".join(f"{each},{draw.randrange(384, 1537, 128)}" for each in heads)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a pruning run, its search, an evaluation and a benchmark."""
    draw = random.Random(0)
    size = {"parameters": 134_515_008, "bytes": 269_030_016, "perplexity": 19.8, "sparsity": 0.0}
    small = {"parameters": 107_000_000, "bytes": 214_000_000, "perplexity": 26.1, "sparsity": 0.25}
    smaller = {"parameters": 81_000_000, "bytes": 162_000_000, "perplexity": 44.0, "sparsity": 0.5}
    sizes = [
        {**small, "name": "25", "folder": "pruned/25", "plan": pruned_plan(draw)},
        {**smaller, "name": "50", "folder": "pruned/50", "plan": pruned_plan(draw)},
    ]
    dense = {**size, "name": "dense", "plan": DENSE_PLAN}
    write(
        tmp_path / "pruned",
        "prune",
        {"dense": dense, "sizes": sizes},
        model="smollm2-135m",
        calibration="c4.jsonl.gz",
        held_out=None,
    )
    lines = []
    for scope in ("round-1-25", "round-2-25"):
        for generation in range(12):
            for tokens, count in ((1024, 8), (8192, 3)):
                for _ in range(count):
                    fitness = 1.5 - 0.05 * generation + 0.2 * draw.random()
                    fitness -= 0.3 * (scope == "round-2-25")
                    line = {"scope": scope, "generation": generation, "tokens": tokens}
                    lines.append(json.dumps({**line, "fitness": fitness, "plan": "3x3,1536"}))
    (tmp_path / "pruned" / "search.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:20])
    write(
        tmp_path / "evaluation",
        "evaluate",
        {
            "model": judged("pruned/25", 107_000_000, 27.0, 0.45),
            "against": judged("smollm2-135m", 134_515_008, 19.78, 0.5),
            "retained": {
                "arc_easy": retained(0.45, 0.5),
                "piqa": retained(0.55, 0.6),
                "mean": retained(0.5, 0.55),
            },
        },
        model="pruned/25",
        against="smollm2-135m",
        perplexity="/data/wiki.test.raw.gz",
    )
    write(
        tmp_path / "bench",
        "bench",
        {
            "model": {
                "source": "pruned/25",
                "parameters": 107_000_000,
                "total_bytes": 214_000_000,
                "loads": [load(1, 30.0), load(8, 120.0)],
            },
            "against": {
                "source": "smollm2-135m",
                "parameters": 134_515_008,
                "total_bytes": 269_030_016,
                "loads": [load(1, 24.0), load(8, 100.0)],
            },
        },
    )
    return tmp_path


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


def test_a_search_alone_is_not_a_report(runs: Path) -> None:
    empty = runs / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no result\.json in"):
        read_folders([str(empty)])
    with pytest.raises(DataError, match="is no folder"):
        read_folders([str(runs / "nowhere")])


def test_results_of_other_kinds_only_show_where_they_come_from(tmp_path: Path) -> None:
    write(tmp_path, "smash", {"tokens_per_step": 1.3})
    report(ReportConfig(folder=(str(tmp_path),), output=str(tmp_path / "report.html")))
    assert "1 results of lightstride smash" in (tmp_path / "report.html").read_text("utf-8")


def test_half_a_result_is_named(tmp_path: Path) -> None:
    write(
        tmp_path, "prune", {"dense": {"perplexity": 9.0}, "sizes": []}, model="m", calibration="c"
    )
    with pytest.raises(DataError, match=r"result\.json is no whole result of prune: 'parameters'"):
        read_folders([str(tmp_path)])


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    numbers = {"model": judged(name, 1000, 9.0, 0.5)}
    write(tmp_path, "evaluate", numbers, model=name, perplexity="$answer")
    report(ReportConfig(folder=(str(tmp_path),), output=str(tmp_path / "report.html")))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_search_record_is_read_up_to_where_it_was_cut_off(runs: Path, tmp_path: Path) -> None:
    evaluations = list(read_search(runs / "pruned" / "search.jsonl"))
    assert len(evaluations) == 2 * 12 * 11
    dots, best = search_curve(evaluations, "round-2-25")
    assert (len(dots), len(best)) == (36, 12)
    assert best[-1][1] == min(y for _, y in dots[-3:])
    assert best[-1][0] == pytest.approx(2 * 12 * (8 * 1024 + 3 * 8192) / 1e6)
    (tmp_path / "bad.jsonl").write_text('{"fitness": "low"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl line 1 is no evaluation"):
        list(read_search(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize(
    ("output", "page"),
    [("report", "report.html"), ("a/1.5", "a/1.5.html"), ("x.html", "x.html"), ("x.HTM", "x.HTM")],
)
def test_a_page_ends_in_html(output: str, page: str) -> None:
    assert ReportConfig(folder=("runs",), output=output).page == Path(page)


def test_a_report_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ReportConfig(folder=())


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


def test_means_compare_the_same_items(tmp_path: Path) -> None:
    for name, right in (("large", "1100"), ("small", "10")):
        whole = judged(name, 100, 20.0, 0.5)
        share = right.count("1") / len(right)
        task = {"value": share, "stderr": 0.1, "num_items": len(right), "items": right}
        numbers = {"model": {**whole, "tasks": {"piqa": task}}}
        write(tmp_path / name, "evaluate", numbers, model=name, perplexity="text.txt")
    facts = read_folders([str(tmp_path)])
    accuracies = {model.source: model.accuracy for model in facts.models}
    assert accuracies == {"large": 1.0, "small": 0.5}
    assert {model.source: model.tasks["piqa"][0] for model in facts.models} == {
        "large": 0.5,
        "small": 0.5,
    }


def test_plans_and_frontiers() -> None:
    assert read_plan("3x2,1152|1x3,0") == [Block(6, 3, 1152), Block(3, 1, 0)]
    points = [(3.0, 5.0), (1.0, 9.0), (2.0, 9.5), (4.0, 4.0)]
    assert frontier(points, lower_is_better=True) == [(1.0, 9.0), (3.0, 5.0), (4.0, 4.0)]
    assert frontier(points, lower_is_better=False) == [(1.0, 9.0), (2.0, 9.5)]


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
