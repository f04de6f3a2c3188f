"""The page in the browser: its policy, and in Chromium what a user sees and does."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from helpers.browser import CHROMIUM, Page, browser
from helpers.fake_session import FakeSession
from helpers.served import Served, served, toy_model
from lightstride.serve.api.page import page_text

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HTML = "<img src=x onerror=alert(1)><script>document.title='owned'</script> & <b>bold</b>"


class HostileSession(FakeSession):
    """Says what it is asked, markup and all, two bytes a step."""

    def choose(self, row):
        token, logprob = super().choose(row)
        prompt = bytes(t for t in row.prompt if t < 256).rsplit(b"user: ", 1)[-1]
        prompt = prompt.removesuffix(b"assistant: ")
        place = len(row.tokens)
        return (prompt[place] if place < len(prompt) else token), logprob

    def step(self, interrupt=None):
        time.sleep(0.01)
        return super().step(interrupt)


def dense() -> dict[str, object]:
    return {"modes": ("ar",), "default_mode": "ar"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(
        toy_model(session=HostileSession), toy_model("dense", session=HostileSession, **dense())
    ) as s:
        yield s


@pytest.fixture
def page(server: Served, tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as tab:
        tab.size(1280, 800)
        tab.open(server.url + "/")
        yield tab
        assert tab.console == []
        assert {url.partition("/v1")[0].rstrip("/") for url in tab.requests} == {server.url}


def say(page: Page, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter", "\r")


def finished(page: Page, turns: int) -> None:
    page.wait(f"turns.length === {turns} && running === null", 30)


def test_the_page_allows_nothing_but_itself(server: Served) -> None:
    response = httpx.get(server.url + "/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    text = page_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert set(re.findall(r"https?://[^'\"\s`$]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\sstyle=|\son[a-z]+=\"", text)
    labels = set(re.findall(r'for="([^"]+)"', text))
    fields = set(re.findall(r'<(?:input|select|textarea)[^>]*\bid="([^"]+)"', text))
    assert fields <= labels


@pytest.mark.slow
@needs_chromium
def test_a_message_streams_in_colors(page: Page, server: Served) -> None:
    say(page, "What is a lighthouse for?")
    page.wait("document.querySelectorAll('.text .step').length > 3")
    finished(page, 1)
    kinds = page.run(
        "[...new Set([...document.querySelectorAll('.text .step')].map(s=>s.dataset.n))]"
    )
    assert sorted(kinds) == ["1", "2", "3"]
    colors = page.run(
        "[...new Set([...document.querySelectorAll('.text .step')]"
        ".map(s => getComputedStyle(s).backgroundColor))]"
    )
    assert len(colors) == 3
    said = page.run("document.querySelector('.text').textContent")
    assert said.startswith("What is a lighthouse for?")
    meters = page.run("[...document.querySelectorAll('.meters dd')].map(d => d.textContent)")
    assert meters[0] == "1.94" or 1.5 < float(meters[0]) <= 2.0
    assert re.fullmatch(r"\d+ ms", meters[2])
    assert re.fullmatch(r"\d+ for \d+ tokens", meters[3])
    assert "tokens in" in page.run("document.getElementById('status').textContent")


@pytest.mark.slow
@needs_chromium
def test_markup_stays_text(page: Page) -> None:
    say(page, HTML)
    finished(page, 1)
    assert HTML in page.run("document.querySelector('.user').textContent")
    assert page.run("document.querySelector('.text').textContent").startswith(HTML)
    assert page.run("document.title") == "Lightstride"
    assert page.run("document.querySelectorAll('#log img, #log script, #log b').length") == 0


@pytest.mark.slow
@needs_chromium
def test_side_by_side_with_the_plain_decoder_and_another_model(page: Page) -> None:
    page.run("document.getElementById('side').click()")
    say(page, "Both of you")
    finished(page, 1)
    titles = page.run("[...document.querySelectorAll('.lane h3')].map(h => h.textContent)")
    assert titles == ["toy · lossless", "toy · plain decoder"]
    first = page.run(
        "[...document.querySelectorAll('.meters')].map(m => m.querySelector('dd').textContent)"
    )
    assert float(first[0]) > 1.5
    assert first[1] == "1.00"
    page.run("document.getElementById('against').value = 'dense'")
    say(page, "And dense")
    finished(page, 2)
    assert page.run("[...document.querySelectorAll('.lane h3')].at(-1).textContent") == "dense"
    page.run("$('model').value = 'dense'; $('model').dispatchEvent(new Event('change'))")
    assert page.run("[...document.querySelectorAll('#modes input')].map(i => i.value)") == ["ar"]


@pytest.mark.slow
@needs_chromium
def test_stop_by_key_and_by_button(page: Page) -> None:
    page.run("document.getElementById('most').value = 400")
    page.run("document.querySelector('#modes input[value=ar]').click()")
    for turn, stop in enumerate(("key", "button"), 1):
        say(page, "x" * 100)
        page.wait(f"document.querySelectorAll('.turn:nth-of-type({turn}) .step').length > 2")
        assert page.run("document.getElementById('send').textContent") == "Stop"
        if stop == "key":
            page.press("Escape")
        else:
            page.run("document.getElementById('send').click()")
        finished(page, turn)
        assert page.run("document.getElementById('status').textContent").startswith("Stopped.")
        assert page.run("document.getElementById('send').textContent") == "Send"


@pytest.mark.slow
@needs_chromium
def test_what_is_copied_can_be_run(page: Page, server: Served) -> None:
    page.run("document.getElementById('prompt').value = \"it's 'quoted'\"")
    curl, python = page.run("asCurl()"), page.run("asPython()")
    assert curl.startswith(f"curl {server.url}/v1/chat/completions \\\n")
    assert "it'\\''s" in curl
    compile(python, "copied", "exec")
    assert f'base_url="{server.url}/v1"' in python
    assert 'extra_body={"mode":"lossless"}' in python


@pytest.mark.slow
@needs_chromium
def test_by_keyboard_alone(page: Page) -> None:
    page.run("document.activeElement.blur()")
    seen = []
    for _ in range(30):
        page.press("Tab")
        seen.append(page.run("document.activeElement.id || document.activeElement.className"))
    for control in ("model", "side", "fresh", "theme", "confidence", "against", "curl", "show"):
        assert control in seen
    assert seen.index("skip") < seen.index("model")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out(
    page: Page, server: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    page.size(width, 844, dark=dark)
    page.open(server.url + "/")
    page.run("document.getElementById('side').click()")
    say(page, "a" * 120)
    finished(page, 1)
    assert page.run("document.scrollingElement.scrollWidth") <= width
    out = page.run(
        "[...document.querySelectorAll('button, select, input, .text, .meters dd')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.id)"
    )
    assert out == []
    assert page.run("getComputedStyle(document.body).color") == (
        "rgb(230, 234, 238)" if dark else "rgb(26, 32, 38)"
    )
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
@needs_chromium
def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with served(toy_model(), key="secret") as server, browser(tmp_path / "profile") as tab:
        tab.size(1280, 800)
        tab.call("Page.navigate", url=server.url + "/")
        tab.wait("!!document.querySelector('dialog[open]')")
        tab.run("document.getElementById('secret').focus()")
        tab.type("secret")
        tab.press("Enter", "\r")
        tab.wait("!!document.querySelector('#model option')")
        say(tab, "hello")
        finished(tab, 1)
