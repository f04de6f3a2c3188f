"""Standard streams and the terminal, made so that nothing written there can end a command.

A stream that was closed is the null device: else its number would go to the next file that is
opened.  Characters that a stream's encoding lacks are written as escapes.
"""

import io
import os
import shutil
import sys
from collections.abc import Sequence

from lightstride.errors import ConfigError

MIN_COLUMNS = 40


def prepare() -> None:
    """Make the standard streams of this process safe to use, and the terminal wide enough."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if shutil.get_terminal_size().columns < MIN_COLUMNS:  # narrower, help takes all memory
        os.environ["COLUMNS"] = str(MIN_COLUMNS)


def check_words(arguments: Sequence[str]) -> None:
    """ConfigError where a word of the command line is not UTF-8 text."""
    for word in arguments:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise ConfigError(
                f"{shown} is not UTF-8 text; prompts and names of files must be"
            ) from None


def silence() -> None:
    """Send what is still to be written to stdout nowhere: whoever read it has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
