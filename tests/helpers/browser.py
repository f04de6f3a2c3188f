"""Headless Chromium for tests, spoken to over a pipe in its own protocol; nothing to install.

The protocol (Chrome DevTools): JSON documents, each ended by a zero byte, on descriptors 3 and 4.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """One tab; what its console said is in `console`."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands = os.fdopen(commands, "wb", buffering=0)
        self.answers = os.fdopen(answers, "rb", buffering=0)
        self.buffer = b""
        self.number = 0
        self.session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of one command."""
        self.number += 1
        message: dict[str, object] = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.note(answer)

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = self.answers.read(65536)
            assert part, "the browser has ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        document: dict[str, Any] = json.loads(line)
        return document

    def note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.console.append(json.dumps(told["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled":
            self.console.append(json.dumps(told["args"]))
        elif event["method"] == "Log.entryAdded":
            self.console.append(told["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def run(self, code: str) -> Any:
        """The value of some JavaScript, awaited."""
        told = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, code: str, seconds: float = 10) -> None:
        """Wait until some JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, code
            time.sleep(0.03)

    def open(self, url: str) -> None:
        """Load a page and wait until its models are known."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !!document.querySelector('#model option')")

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Another window, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def press(self, key: str, text: str | None = None) -> None:
        """A key, down and up."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        down = {**common, "text": text} if text else common
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Text, where the cursor is."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """What the window shows, as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A tab of a browser that ends with the test."""
    assert CHROMIUM is not None
    commands, our_commands = os.pipe()
    our_answers, answers = os.pipe()
    # Away from 3 and 4, which they become in the browser.
    their_commands = fcntl.fcntl(commands, fcntl.F_DUPFD, 20)
    their_answers = fcntl.fcntl(answers, fcntl.F_DUPFD, 20)
    with subprocess.Popen(
        [
            "/bin/bash",
            "-c",
            f'exec "$@" 3<&{their_commands} 4>&{their_answers}',
            "bash",
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(their_commands, their_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for each in (commands, answers, their_commands, their_answers):
            os.close(each)
        page = None
        try:
            page = Page(our_commands, our_answers)
            yield page
        finally:
            process.terminate()
            process.wait(20)
            if page is not None:
                page.commands.close()
                page.answers.close()
