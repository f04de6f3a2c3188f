"""Prompts with answers, whatever instruction data looks like."""

import json
from pathlib import Path

import pytest

from lightstride.data.conversations import read_conversations
from lightstride.errors import DataError

RECORDS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"prompt": "Say hi.", "response": "Hi."},
    {"question": "Two and two?", "answer": "4"},
    {"instruction": "Name one.", "instances": [{"input": "", "output": "Ada"}]},
    {
        "messages": [
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "B."},
            {"role": "user", "content": "C?"},
            {"role": "assistant", "content": "D."},
        ]
    },
    {"conversations": [{"from": "human", "value": "E?"}, {"from": "gpt", "value": "F."}]},
    {"prompt": "Nothing said."},
]


def test_every_layout_has_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    found = read_conversations(str(path))
    assert [each.answer for each in found] == ["3", "Hi.", "4", "Ada", "D.", "F."]
    assert [each.prompt.messages[-1].content for each in found][::4] == ["Add.\n\n1, 2", "C?"]


def test_data_without_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(RECORDS[-1]))
    with pytest.raises(DataError, match="no prompt with an answer"):
        read_conversations(str(path))
