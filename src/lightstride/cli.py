"""The command line: flags to a configuration, a configuration to one call.

Data goes to stdout, progress to stderr; `--json` prints exactly one document.  A mistake of the
user's is one line on stderr and exit code 2.  A command's module is imported when it is called, so
that `--help` is instant.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FrameType

import tyro

from lightstride import __version__, streams
from lightstride.config import (
    BenchConfig,
    CacheConfig,
    Command,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PruneConfig,
    RecoverConfig,
    ReportConfig,
    ServeConfig,
    SmashRunConfig,
)
from lightstride.config.mistakes import in_our_words
from lightstride.errors import ConfigError, LightstrideError, is_panic

DESCRIPTION = (
    "Light models, long strides: prune language models, and let them emit several tokens a step. "
    "`lightstride COMMAND --help` tells more, `lightstride --version` the version."
)


STOPS: Mapping[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
}
OURS = (
    "that is a mistake of lightstride's own; please report it with the lines above, the command, "
    "and all that `lightstride doctor` prints"
)
MOST_SAID = 1000
"""Characters of an error; what a file holds can be of any length."""
COMMANDS: Mapping[str, type[Command]] = {
    "prune": PruneConfig,
    "recover": RecoverConfig,
    "smash": SmashRunConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "bench": BenchConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "cache": CacheConfig,
    "doctor": DoctorConfig,
}
"""The function of each stands, under its name, in the module of its name in `commands/`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    before = {number: signal.signal(number, stop) for number in STOPS if is_ours(number)}
    try:
        streams.check_words(given)
        if given == ["--version"]:
            sys.stdout.write(f"lightstride {__version__}\n")
        elif (config := parse(given)) is not None:
            run(config)
        sys.stdout.flush()
        return 0
    except LightstrideError as error:
        return print_error(str(error), 2, error)
    except BrokenPipeError:  # whoever read stdout has seen enough
        streams.silence()
        return 0
    except OSError as error:  # the system's own: a full disk, no permission
        where = "" if error.filename is None else f": {error.filename}"
        return print_error(f"{error.strerror or error}{where}", 2, error)
    except MemoryError as error:
        return print_error("the memory of this machine is not enough", 2, error)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return print_interrupted(given, STOPS[number], 128 + number)
    except BaseException as error:  # a mistake of ours, or of a library with what it read
        if is_panic(error):
            return print_error(f"a library cannot take what it read: {error}", 2, error)
        if not isinstance(error, Exception):
            raise
        traceback.print_exc()
        return print_error(OURS, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stop(number: int, _frame: FrameType | None) -> None:
    """Raise Stopped; a second signal ends the process at once, as the system does."""
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def is_ours(number: int) -> bool:
    """Whether a signal is to be handled here: not on a thread, and not if it is to be ignored."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) != signal.SIG_IGN  # as under nohup


def print_interrupted(given: Sequence[str], what: str, code: int) -> int:
    """Say, on a line of its own, that the command ended early, and how it goes on; the code."""
    resumable = any(hasattr(COMMANDS[name], "resume") for name in given[:1] if name in COMMANDS)
    sys.stderr.write("\n" if sys.stderr.isatty() else "")  # a progress bar stands on this line
    return print_error(what + ("; go on with --resume" if resumable else ""), code)


def parse(arguments: Sequence[str]) -> Command | None:
    """The configuration these arguments ask for; None where they ask for help, which is printed."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return parse_flags(arguments)
    except SystemExit as stop:
        if stop.code:
            said.seek(0)
            given = COMMANDS.get(arguments[0]) if arguments else None
            raise ConfigError(in_our_words(flattened_box(said.read()), given, arguments)) from None
    with contextlib.suppress(SystemExit):  # again, as the terminal likes it
        parse_flags(arguments)
    examples = [command.example for command in COMMANDS.values()]
    named = [COMMANDS[name].example for name in arguments if name in COMMANDS]
    sys.stdout.write(f"\nexample: {[*named, *examples][0]}\n")
    return None


def parse_flags(arguments: Sequence[str]) -> Command:
    """The configuration that tyro parses; SystemExit on a mistake or a wish for help."""
    config = tyro.extras.subcommand_cli_from_dict(
        dict(COMMANDS),
        prog="lightstride",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    assert isinstance(config, Command)
    return config


def run(config: Command) -> None:
    """Call the command; with `--json`, its document is all that reaches stdout."""
    call = function_of(next(name for name, kind in COMMANDS.items() if type(config) is kind))
    if not config.json:
        call(config)
        return
    with contextlib.redirect_stdout(sys.stderr):
        document = call(config)
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")


def function_of(name: str) -> Callable[[Command], Mapping[str, object]]:
    """The function of a command: its configuration to its document."""
    function: Callable[[Command], Mapping[str, object]] = getattr(
        import_module(f"lightstride.commands.{name}"), name
    )
    return function


def print_error(message: str, code: int, error: BaseException | None = None) -> int:
    """Print one line on stderr, under LIGHTSTRIDE_DEBUG=1 with its traceback; the exit code."""
    if error is not None and os.environ.get("LIGHTSTRIDE_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    text = " ".join(message.split())
    text = text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]} ..."
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"lightstride: error: {line}\n")
    return code


def flattened_box(box: str) -> str:
    """The parser's message, boxed in several lines, in one line; its help texts are left out."""
    parts: list[str] = [""]
    for line in box.splitlines():
        text = line.strip("│ ")
        if set(line.strip()) <= set("│─ "):
            parts.append("")
        elif not line.startswith(("╭", "╰", "│" + 9 * " ")):  # a title, an end, a flag's help
            parts[-1] = f"{parts[-1]} {text}".strip()
    told = [part for part in parts if part and not part.startswith(("Argument help", "For full"))]
    return "; ".join(told) or " ".join(box.split())
