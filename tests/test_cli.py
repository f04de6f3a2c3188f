"""The command line: instant help, examples that run, one line for a mistake, one JSON document."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import get_type_hints

import pytest

from lightstride import cli
from lightstride.config import PruneConfig
from lightstride.errors import DataError

PRUNE = ["prune", "smollm2-135m", "-o", "out", "--sparsity", "0.25"]


def with_prune(monkeypatch: pytest.MonkeyPatch, call: object) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"prune": PruneConfig})
    monkeypatch.setattr(cli, "function_of", {"prune": call}.__getitem__)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_ends_with_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    words = shlex.split(last.removeprefix("example: "))
    assert words[:2] == ["lightstride", name]
    assert isinstance(cli.parse(words[1:]), cli.COMMANDS[name])


def test_help_names_every_command_and_ends_with_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"• {name}" in out for name in cli.COMMANDS)
    assert out.splitlines()[-1].startswith("example: lightstride ")


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    script = (
        "import os, sys, lightstride.cli as cli; cli.main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules);"
        "times = os.times(); print(heavy, times.user + times.system < 0.3, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "set() True"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_function_of_its_name(name: str) -> None:
    assert get_type_hints(cli.function_of(name))["config"] is cli.COMMANDS[name]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "lightstride 0.1.0\n"


def test_json_is_the_only_thing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(config: PruneConfig) -> Mapping[str, object]:
        print("a library's greeting")
        return {"sparsity": list(config.sparsity)}

    with_prune(monkeypatch, chatty)
    assert cli.main([*PRUNE, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"sparsity": [0.25]}
    assert said.out.count("\n") == 1
    assert "greeting" in said.err
    monkeypatch.setenv("RANK", "1")
    assert cli.main([*PRUNE, "--json"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no such\nfile: x"), 2, "lightstride: error: no such file: x\n"),
        (KeyboardInterrupt(), 130, "lightstride: error: interrupted; go on with --resume\n"),
        (DataError("no \x1b[31m file"), 2, "lightstride: error: no \\x1b[31m file\n"),
        (
            OSError(28, "No space left on device", "out/x"),
            2,
            "lightstride: error: No space left on device: out/x\n",
        ),
    ],
)
def test_an_error_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: PruneConfig) -> Mapping[str, object]:
        raise error

    with_prune(monkeypatch, fail)
    assert cli.main(PRUNE) == code
    assert capsys.readouterr() == ("", line)


def test_our_own_mistake_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: PruneConfig) -> Mapping[str, object]:
        raise AssertionError("a bug")

    with_prune(monkeypatch, fail)
    assert cli.main(PRUNE) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "AssertionError: a bug"
    assert "lightstride doctor" in last


def test_debugging_shows_where_a_line_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: PruneConfig) -> Mapping[str, object]:
        raise DataError("no text")

    with_prune(monkeypatch, fail)
    monkeypatch.setenv("LIGHTSTRIDE_DEBUG", "1")
    assert cli.main(PRUNE) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "lightstride: error: no text"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Expected one of"),
        (["prun"], "Unrecognized options: prun"),
        (
            ["prune"],
            "Missing from lightstride prune: MODEL -o DIR, --output DIR --sparsity S [S ...]\n",
        ),
        ([*PRUNE, "--sparcity", "1"], "Unrecognized options: --sparcity"),
        ([*PRUNE, "--target", "tensorrt"], "one of any, hf, vllm, gguf, decilm, uniform"),
        ([*PRUNE, "--seed", "x"], "--seed"),
    ],
)
def test_a_wrong_flag_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("lightstride: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_only_defaults_that_say_something(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: " in shown
    assert not [bad for bad in ("(default: )", "None", "['") if bad in shown]


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightstride", "--version"], capture_output=True, text=True
    )
    assert done.stdout == "lightstride 0.1.0\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_as_ctrl_c_does(
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outside = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    with_prune(monkeypatch, lambda _: signal.raise_signal(number))
    try:
        assert cli.main(PRUNE) == code
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    line = f"lightstride: error: ended by {number.name}; go on with --resume\n"
    assert capsys.readouterr() == ("", line)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []

    def slow_to_end(_: PruneConfig) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            handlers.append(signal.getsignal(signal.SIGTERM))

    with_prune(monkeypatch, slow_to_end)
    assert cli.main(PRUNE) == 143
    assert handlers == [signal.SIG_DFL]


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with_prune(monkeypatch, lambda _: signal.raise_signal(signal.SIGHUP))
    assert cli.main(PRUNE) == 0
    signal.signal(signal.SIGHUP, before)


def test_help_fits_a_terminal_of_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    assert cli.main(["generate", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 1000
