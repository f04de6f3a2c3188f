"""Progress in a terminal and in a log file."""

import io
import sys

import pytest

from lightstride.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(count: int, *, disable: bool = False) -> None:
    with Bar(desc="cutting", total=count, unit="site", disable=disable) as bar:
        for number in range(count):
            bar.set_postfix(loss=f"{number:.1f}")
            bar.update()
            bar.refresh()


def test_a_log_file_gets_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    run(30)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cutting: 30/30 sites in ")
    assert lines[0].endswith(", loss=29.0")


def test_a_stage_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Bar(total=4) as bar:
            bar.update(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().err.startswith("3/4 in ")


def test_iterating_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Bar([1, 2, 3], desc="loads")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith("loads: 3/3 in ")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(3)
    assert terminal.getvalue().count("\r") >= 3
    assert "cutting" in terminal.getvalue()


def test_disabled_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    run(3, disable=True)
    assert capsys.readouterr().err == ""
