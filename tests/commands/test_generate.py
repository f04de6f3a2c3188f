"""Answers on the command line: streamed, as JSON, and refused in one line."""

import json
from pathlib import Path

import pytest

from helpers.smash_folders import save_folders
from lightstride import cli


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return save_folders(tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        ["-p", ""],
        ["-p", "x" * 600],
        ["-p", "x", "--confidence", "0"],
        ["-p", "x", "--confidence", "1.5"],
        ["-p", "x", "--mode", "fast"],
        ["-p", "x", "--max-new-tokens", "0"],
        ["-p", "x", "--raw", "--system", "y"],
    ],
)
def test_bad_flags_are_one_line(
    folders: tuple[Path, Path], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(folders[1]), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightstride: error: ")
    assert captured.err.count("\n") == 1


def test_the_command_streams_and_says_what_it_cost(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        "generate",
        str(folders[1]),
        "-p",
        "hello",
        "--max-new-tokens",
        "16",
        "--dtype",
        "float32",
    ]
    flags += ["--confidence", "0.3"]
    assert cli.main([*flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tokens"] == 16 == sum(map(len, document["steps"]))
    assert document["macro_steps"] == len(document["steps"])
    assert document["tokens_per_step"] == pytest.approx(16 / document["macro_steps"])
    assert document["kv_entries"] == document["macro_steps"] - 1
    assert document["kv_bytes"] == document["kv_entries"] * 2 * 2 * 2 * 8 * 4
    assert document["tokens_per_second"] > 0
    assert cli.main(flags) == 0
    captured = capsys.readouterr()
    assert captured.out == document["text"] + "\n"
    assert captured.err.startswith(f"16 tokens in {document['macro_steps']} macro steps")
    assert captured.err.count("\n") == 1
    assert cli.main([*flags, "--show-steps"]) == 0
    assert "\x1b[36m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main([*flags, "--show-steps"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_plain_model_answers_too(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["generate", str(folders[0]), "-p", "hello", "--raw", "--max-new-tokens", "5", "--json"]
    assert cli.main(flags) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tokens"], document["macro_steps"], document["prompt_tokens"]) == (5, 5, 5)
    assert 0 <= document["near_ties"] <= 5
