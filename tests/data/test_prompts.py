"""Prompts: every layout, whatever the file, and one clear line for what has none."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lightstride.data.prompts import Message, make_prompt, prompt_of_record, read_prompts
from lightstride.errors import DataError, NetworkError

USER = "Name a fruit."
RECORDS = {
    "alpaca": {"instruction": USER, "input": "", "output": "Apple"},
    "dolly": {"instruction": USER, "context": "", "response": "Apple"},
    "plain": {"prompt": USER, "response": "Apple"},
    "framed": {"prompt": f"Below is a task.\n\n### Instruction:\n{USER}\n\n### Response:\n"},
    "text": {"text": f"  {USER}\n"},
    "question": {"question": USER, "answer": "Apple"},
    "turns": {"question_id": 1, "category": "writing", "turns": [USER, "Another."]},
    "seed": {"id": "s", "instruction": USER, "instances": [{"input": "", "output": "Apple"}]},
    "messages": {"messages": [{"role": "user", "content": USER}]},
    "answered": {
        "messages": [{"role": "user", "content": USER}, {"role": "assistant", "content": "Apple"}]
    },
    "conversations": {
        "conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": "Apple"}]
    },
}


@pytest.mark.parametrize("layout", RECORDS)
def test_every_layout_gives_the_same_prompt(layout: str) -> None:
    prompt = prompt_of_record(RECORDS[layout], "here")
    assert prompt == make_prompt([Message("user", USER)], "chat")


def test_inputs_follow_their_instruction() -> None:
    asked = [
        {"instruction": "Sort.", "input": "b a"},
        {"instruction": "Sort.", "context": "b a"},
        {"instruction": "Sort.", "instances": [{"input": "b a"}, {"input": "d c"}]},
        {"prompt": "### Instruction:\nSort.\n\n### Input:\nb a\n\n### Response:"},
    ]
    prompts = [prompt_of_record(each, "here") for each in asked]
    assert prompts == [make_prompt([Message("user", "Sort.\n\nb a")], "chat")] * 4


def test_a_conversation_ends_with_the_users_last_turn() -> None:
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    listed = [{"role": role, "content": content} for role, content in turns]
    prompt = prompt_of_record(
        {"messages": [*listed, {"role": "assistant", "content": "x"}]}, "here"
    )
    assert prompt is not None
    assert [(m.role, m.content) for m in prompt.messages] == turns


def test_domains() -> None:
    code = prompt_of_record({"task_id": "a/0", "prompt": "def f():\n"}, "here")
    maths = prompt_of_record({"question": "1+1?", "answer": "It is\n#### 2"}, "here")
    own = prompt_of_record({"prompt": "x", "domain": "law"}, "here")
    assert code is not None
    assert maths is not None
    assert own is not None
    assert [code.domain, maths.domain, own.domain] == ["code", "maths", "law"]
    assert "```python\ndef f():\n```" in code.messages[0].content


def test_reads_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {number}.", "input": ""} for number in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    names = ["a.jsonl", "b.jsonl.gz", "c.json", "d.parquet"]
    first, *others = [read_prompts(str(tmp_path / name)) for name in names]
    assert [prompt.messages[0].content for prompt in first] == [f"Say {n}." for n in range(5)]
    assert others == [first] * 3
    assert read_prompts(str(tmp_path)) == first
    assert read_prompts([str(tmp_path / name) for name in names]) == first
    assert read_prompts(",".join(str(tmp_path / name) for name in names)) == first


def test_a_single_conversation_is_a_record_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(RECORDS["messages"]))
    assert len(read_prompts(str(tmp_path / "one.json"))) == 1


def test_a_limit_draws_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(40)))
    first = read_prompts(str(path), limit=10)
    assert first == read_prompts(str(path), limit=10)
    assert first == read_prompts(str(path), limit=30)[:10]
    assert first != read_prompts(str(path), limit=10, seed=1)
    assert len({prompt.id for prompt in first}) == 10


def test_records_without_text_are_passed_over_unless_there_is_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    empty = [{"prompt": " "}, {"messages": []}, {"instruction": "", "input": "x"}, {"text": None}]
    path.write_text("".join(json.dumps(each) + "\n" for each in empty))
    with pytest.raises(DataError, match=r"no prompt in .*a\.jsonl: its records have no text"):
        read_prompts(str(path))
    path.write_text("".join(json.dumps(each) + "\n" for each in [*empty, {"prompt": USER}]))
    assert len(read_prompts(str(path))) == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"query": "x"}, "line 1 has none of the fields of a prompt, messages"),
        ({"prompt": 5}, "line 1 has no text as prompt: '5'"),
        ({"messages": "x"}, "line 1 has no list of messages as messages"),
        ({"messages": ["x"]}, "line 1 is neither a text nor a record"),
        ({"turns": "x"}, "line 1 has no list as turns"),
        ([1], "line 1 is neither a text nor a record"),
    ],
)
def test_bad_records_name_their_line(tmp_path: Path, record: object, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=said):
        read_prompts(str(path))


def test_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n{"prompt')
    cases = {
        "self": "written by a model",
        "nothing here": "there is no prompt source 'nothing here'",
        str(tmp_path / "a.txt"): "is not a file or folder of .jsonl, .json, .parquet",
        str(tmp_path / "b.jsonl"): "line 2 is not JSON",
    }
    for source, said in cases.items():
        with pytest.raises(DataError, match=said):
            read_prompts(source)
    with pytest.raises(NetworkError, match="without a network use self, or a file"):
        read_prompts("someone/instructions")
