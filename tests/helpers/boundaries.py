"""Every moment at which a command changes the disk: told before, in the middle of, and after.

Python's own calls are seen as they are made; the two libraries that write by themselves
(safetensors and tokenizers) are seen as one operation, and numpy, which writes to the file that it
is given, when it asks for that file's number.
"""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import safetensors.torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Moment = Literal["before", "half", "after"]
Tell = Callable[[Moment, str, str], None]
"""Called with the moment, the operation and the path; what it raises is what the operation does."""
CHANGES = ("rename", "replace", "mkdir", "rmdir", "unlink", "remove", "chmod", "truncate", "utime")
WRITES = ("open", "write", "number", "save", "mkdir")
"""Operations that need room on the disk."""


class ToldFile(io.FileIO):
    """A file whose writes are told."""

    def __init__(self, path: str, mode: str, tell: Tell) -> None:
        self.tell_of = lambda moment, operation: tell(moment, operation, path)
        self.tell_of("before", "open")
        super().__init__(path, mode)
        self.tell_of("after", "open")

    def write(self, data: Any) -> int:
        """Write it in two parts."""
        whole = bytes(data)
        self.tell_of("before", "write")
        done = super().write(whole[: len(whole) // 2]) or 0
        self.tell_of("half", "write")
        done += super().write(whole[done:]) or 0
        self.tell_of("after", "write")
        return done

    def fileno(self) -> int:
        """The number, by which numpy writes; its error has no number, as numpy's has none."""
        try:
            self.tell_of("before", "number")
        except OSError:
            raise OSError("100 requested and 0 written") from None
        return super().fileno()


def opener(tell: Tell, root: str) -> Callable[..., Any]:
    """`open`, of which files below the root that are written are told."""
    original = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        path = os.fspath(file) if isinstance(file, str | os.PathLike) else ""
        if not str(path).startswith(root) or not set(mode) & set("wax+"):
            return original(file, mode, buffering, *rest, **more)
        raw = ToldFile(str(path), mode.replace("b", "").replace("t", ""), tell)
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return binary
        names = ("encoding", "errors", "newline")
        return io.TextIOWrapper(binary, **{**dict(zip(names, rest, strict=False)), **more})

    return opened


def told(name: str, call: Callable[..., Any], tell: Tell, root: str) -> Callable[..., Any]:
    """The same call, told of where it is about a path below the root."""

    def made(*given: Any, **more: Any) -> Any:
        path = str(os.fspath(given[0])) if isinstance(given[0], str | os.PathLike) else ""
        if not path.startswith(root) and more.get("dir_fd") is None:
            return call(*given, **more)
        tell("before", name, path)
        result = call(*given, **more)
        tell("after", name, path)
        return result

    return made


def saver(
    call: Callable[..., Any], place: int, tell: Tell, kind: type[Exception]
) -> Callable[..., Any]:
    """A library's call that writes a whole file, whose path is at this place.

    Errors are raised as the library does: of its own kind, with the system's number in the text.
    """

    def tell_of(moment: Moment, path: Path) -> None:
        try:
            tell(moment, "save", str(path))
        except OSError as error:
            raise kind(f"{error.strerror} (os error {error.errno})") from None

    def made(*given: Any, **more: Any) -> Any:
        path = Path(given[place])
        tell_of("before", path)
        result = call(*given, **more)
        whole = path.read_bytes()
        with io.FileIO(path, "r+") as file:
            file.truncate(len(whole) // 2)
        tell_of("half", path)
        with io.FileIO(path, "w") as file:
            file.write(whole)
        tell_of("after", path)
        return result

    return made


class ToldTokenizer:
    """A tokenizer whose file is told of."""

    def __init__(self, tokenizer: Tokenizer, tell: Tell) -> None:
        self.tokenizer, self.tell_of = tokenizer, tell

    def save(self, path: str) -> None:
        """Write the file."""
        saver(self.tokenizer.save, 0, self.tell_of, Exception)(path)

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)


@contextmanager
def boundaries(root: Path, tell: Tell) -> Iterator[None]:
    """Tell of every change of the disk below the root while the block runs."""
    below = str(root)
    backend = PreTrainedTokenizerFast.backend_tokenizer
    with ExitStack() as stack:

        def patch(owner: object, name: str, by: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, by))

        for name in CHANGES:
            patch(os, name, told(name, getattr(os, name), tell, below))
        opened = opener(tell, below)
        patch(builtins, "open", opened)
        patch(io, "open", opened)
        patch(
            safetensors.torch,
            "serialize_file",
            saver(safetensors.torch.serialize_file, 1, tell, SafetensorError),
        )
        of_backend = property(lambda self: ToldTokenizer(backend.fget(self), tell))
        patch(PreTrainedTokenizerFast, "backend_tokenizer", of_backend)
        yield
