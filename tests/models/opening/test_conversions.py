"""Converted copies: known again, checked, limited in size, made once by two processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightstride.errors import ConfigError
from lightstride.files import temporary
from lightstride.models.opening import conversions
from lightstride.models.opening.conversions import RECORD, Source, clear, copies, kept, older


class Converter:
    """Doubles a text, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def of(self, source: Source) -> Callable[[Path], None]:
        def convert(folder: Path) -> None:
            self.calls += 1
            text = b"".join(part.read_bytes() for part in source.parts)
            (folder / "weights").write_bytes(text + text)

        return convert

    def __call__(self, path: Path, version: int = 1) -> Path:
        source = Source(name="toy", parts=(path,))
        return kept(source, version, self.of(source))


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    return Converter()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "toy.gguf").write_bytes(b"model")
    return tmp_path / "toy.gguf"


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / RECORD, (then, then))


def test_a_source_is_converted_once_and_not_even_read_again(
    convert: Converter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(path)
    assert (folder / "weights").read_bytes() == b"modelmodel"
    monkeypatch.setattr(Source, "digest", lambda _: pytest.fail("read again"))
    assert convert(path) == folder
    assert convert.calls == 1


def test_the_same_bytes_at_another_place_are_the_same_copy(
    convert: Converter, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere.gguf"
    other.write_bytes(path.read_bytes())
    folder = convert(path)
    assert convert(other) == folder
    assert convert.calls == 1
    monkeypatch.setattr(Source, "digest", lambda _: pytest.fail("read again"))
    assert convert(other) == convert(path) == folder


def test_another_content_or_converter_is_another_copy(convert: Converter, path: Path) -> None:
    first = convert(path)
    assert convert(path, version=2) != first
    path.write_bytes(b"other")
    assert convert(path) != first
    assert convert.calls == 3


def spoil_size(folder: Path) -> None:
    (folder / "weights").write_bytes(b"cut")


def spoil_content(folder: Path) -> None:
    (folder / "weights").write_bytes(b"modelMODEL")


def spoil_record(folder: Path) -> None:
    (folder / RECORD).write_text("{")


def spoil_files(folder: Path) -> None:
    (folder / "weights").unlink()


@pytest.mark.parametrize("spoil", [spoil_size, spoil_content, spoil_record, spoil_files])
def test_a_damaged_copy_is_made_again(
    spoil: Callable[[Path], None], convert: Converter, path: Path
) -> None:
    folder = convert(path)
    spoil(folder)
    assert not copies()[0].is_sound()
    assert convert(path) == folder
    assert (folder / "weights").read_bytes() == b"modelmodel"
    assert convert.calls == 2
    assert copies()[0].is_sound(thorough=True)


def test_a_copy_that_was_only_moved_is_sound(convert: Converter, path: Path) -> None:
    folder = convert(path)
    os.utime(folder / "weights", (1, 1))
    assert convert(path) == folder
    assert convert.calls == 1


def test_a_thorough_look_sees_what_size_and_time_hide(convert: Converter, path: Path) -> None:
    folder = convert(path)
    status = (folder / "weights").stat()
    spoil_content(folder)
    os.utime(folder / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert copies()[0].is_sound()
    assert not copies()[0].is_sound(thorough=True)


def test_what_was_not_used_for_longest_makes_room(
    convert: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE_GB", "1e-5")
    folders = []
    for number in range(4):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(bytes([number]) * 2000)
        folders.append(convert(path))
        age(folders[-1], 3600 * (9 - number))
        if number == 1:
            convert(tmp_path / "0.gguf")  # used just now
    assert [folder.is_dir() for folder in folders] == [True, False, False, True]


def test_what_may_be_being_read_stays(
    convert: Converter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE_GB", "0")
    first = convert(path)
    path.write_bytes(b"other")
    second = convert(path)
    assert first.is_dir()
    assert second.is_dir()


def test_a_limit_that_is_no_number_is_refused(
    convert: Converter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE_GB", "lots")
    with pytest.raises(ConfigError, match="LIGHTSTRIDE_CACHE_GB=lots is not allowed"):
        convert(path)


def test_clearing_by_name_and_altogether(convert: Converter, path: Path, tmp_path: Path) -> None:
    folder = convert(path)
    (tmp_path / "cache/gguf/old-1").mkdir(parents=True)
    killed = temporary(folder)
    killed.mkdir()
    with pytest.raises(ConfigError, match=f"no such copy; there is: {folder.name}"):
        clear("other")
    assert [copy.folder for copy in clear("toy")] == [folder]
    assert not folder.exists()
    assert not killed.exists()
    assert [copy.name for copy in older()] == ["old-1"]
    folder = convert(path)
    assert {copy.name for copy in clear(None)} == {folder.name, "old-1"}
    assert not copies()
    assert not older()


def test_a_conversion_that_fails_leaves_nothing(convert: Converter, path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        kept(Source(name="toy", parts=(path,)), 1, fail)
    assert not list(conversions.converted_folder().iterdir())


TWO = """
import sys, time
from pathlib import Path
from lightstride.models.opening.conversions import Source, kept
def convert(folder):
    with open(sys.argv[2], "a") as calls:
        calls.write("x")
    time.sleep(0.5)
    (folder / "weights").write_bytes(b"whole")
folder = kept(Source(name="toy", parts=(Path(sys.argv[1]),)), 1, convert)
assert (folder / "weights").read_bytes() == b"whole"
print(folder)
"""


def test_two_processes_convert_once(path: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    environment = {**os.environ, "LIGHTSTRIDE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", TWO, str(path), str(calls)]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert calls.read_text() == "x"
    record = json.loads((Path(said[0].strip()) / RECORD).read_text())
    assert record["source"]["bytes"] == len(b"model")
