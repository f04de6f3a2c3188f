"""benchmarks/draft_prompts.py: what it asks, and that a training can read it."""

import json
import sys
from pathlib import Path

import pytest

from helpers.benchmark import load_benchmark
from lightstride.data.prompts import read_prompts


def test_prompts_of_all_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load_benchmark("draft_prompts")
    wrapped = f"Below is an instruction.\n\n{bench.WRAPPED[0]}What is rain?{bench.WRAPPED[1]}\n"
    chat = {"prompt": wrapped, "response": "Water that falls out of clouds."}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    maths = {"question": "What is 2 + 3?", "answer": "5"}
    (tmp_path / "maths.jsonl").write_text(json.dumps(maths) + "\n")
    monkeypatch.setattr(bench, "function_heads", lambda: ['def f(x):\n    """Twice x."""'])
    files = ["--chat", str(tmp_path / "chat.jsonl"), "--maths", str(tmp_path / "maths.jsonl")]
    monkeypatch.setattr(sys, "argv", ["draft_prompts.py", str(tmp_path / "all.jsonl"), *files])
    assert bench.main() == 0
    assert json.loads(capsys.readouterr().out) == {"prompts": 4 + len(bench.VERBS) * 6}
    found = read_prompts(str(tmp_path / "all.jsonl"))
    asked = {tuple(message.content for message in prompt.messages): prompt for prompt in found}
    assert asked[("What is rain?",)].domain == "chat"
    assert asked[("What is 2 + 3?",)].domain == "maths"
    [turns] = [turns for turns in asked if len(turns) == 3]
    assert turns[:2] == ("What is rain?", "Water that falls out of clouds.")
    assert turns[2] in bench.FOLLOWING
    assert any("Twice x." in turns[0] for turns in asked)


def test_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.jsonl"
    monkeypatch.setattr(sys, "argv", ["draft_prompts.py", str(out), "--chat", "nowhere.jsonl"])
    assert load_benchmark("draft_prompts").main() == 2
    assert capsys.readouterr().err.startswith("error: there is no prompt source 'nowhere.jsonl'")
    assert not out.exists()


def test_functions_of_the_library_have_heads_and_promises() -> None:
    heads = load_benchmark("draft_prompts").function_heads()
    assert len(heads) > 100
    assert all(head.startswith("def ") and len(head) <= 900 for head in heads)
