"""benchmarks/memory.py on a toy: numbers by budget and domain, and files that are none."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from helpers.benchmark import load_benchmark
from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.memory.cache import full_plan
from lightstride.memory.plan import ALL, Keep, MemoryPlan
from lightstride.memory.plan_files import PLAN_FILE, MemoryFile, write_plans
from lightstride.results import read_result

benchmark = load_benchmark("memory")
yardsticks = importlib.import_module("memory_yardsticks")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


DOCUMENTS = [
    {"domain": "chat", "messages": [said("user", "abc " * 20), said("assistant", "no " * 20)]},
    {"domain": "copy", "messages": [said("user", "x y z " * 15), said("assistant", "x y z " * 15)]},
    {"domain": "chat", "messages": [said("user", "q " * 40), said("assistant", "why? " * 9)]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A smashed toy with a plan, and documents."""
    base = tiny_llama(tied=False)
    save_checkpoint(base, byte_tokenizer(), tmp_path / "base")
    model = toy(base)
    model.config.base = str(tmp_path / "base")
    save_checkpoint(model, byte_tokenizer(), tmp_path / "smashed")
    full = full_plan(base)
    plan = MemoryPlan(blocks=((ALL, Keep(4, 32)), (Keep(0, 32), ALL)), head_dim=8, base=full.base)
    write_plans(tmp_path / "smashed", MemoryFile({0.5: plan}, 0.5), {})
    lines = "\n".join(json.dumps(each) for each in DOCUMENTS)
    (tmp_path / "documents.jsonl").write_text(lines + "\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> None:
    given = ["--documents", str(folder / "documents.jsonl"), "--plan", str(folder / "smashed")]
    monkeypatch.setattr(sys, "argv", ["memory.py", *given, *flags])
    benchmark.main()


def test_the_last_line_is_the_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "memory.json"
    run(monkeypatch, folder, "--output", str(output))
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(numbers) == {"0.5", "others"}
    assert set(numbers["0.5"]) == {"chat", "copy"}
    for found in numbers["0.5"].values():
        low, high = found["kl_interval"]
        assert 0 < low <= found["kl"] <= high
        assert 0 < found["entries_per_token"] < 1
        assert 0 <= found["same"] <= 1
    assert set(numbers["others"]["0.5"]) == {"plan", "window", "evicted", "plan int8"}
    run(monkeypatch, folder, "--alone")
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert alone == {"0.5": numbers["0.5"], "others": {"0.5": {"plan": numbers["0.5"]}}}
    shutil.copyfile(folder / "smashed" / PLAN_FILE, folder / "base" / PLAN_FILE)
    run(monkeypatch, folder, "--alone", "--plan", str(folder / "base"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == alone
    others = numbers["others"]["1"]
    for domain in ("chat", "copy"):
        assert 0 < others["int8"][domain]["kl"] < others["int4"][domain]["kl"]
        assert others["bf16"][domain]["kl"] > 0
        assert others["q8_0"][domain]["kl"] > 0
        assert others["q4_k_m"][domain]["documents"] == others["q8_0"][domain]["documents"]
    assert read_result(output)["numbers"]["0.5"] == numbers["0.5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"domain": "a", "messages": [{"role": "user", "content": "b"}]}', "assistant"),
        ('{"domain": "a", "messages": 3}', "line 1"),
        ("", "no documents"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    (folder / "documents.jsonl").write_text(line)
    with pytest.raises(SystemExit, match=message) as caught:
        run(monkeypatch, folder)
    assert "\n" not in str(caught.value)


def test_a_model_without_plans_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "smashed" / "memory.json").unlink()
    with pytest.raises(SystemExit, match="no memory plan"):
        run(monkeypatch, folder)


def test_eviction_keeps_the_latest_and_what_got_attention() -> None:
    reader = yardsticks.EvictingReader(40, [None])
    received_GTT = torch.rand(2, 100, 100, generator=torch.Generator().manual_seed(0))
    received_GTT[:, :, 30] = 9.0
    seen_GTT = reader.seen(received_GTT) & torch.ones(100, 100, dtype=torch.bool).tril()
    assert seen_GTT[:, 99, 30].all()
    assert seen_GTT[:, 99, :4].all()
    border = reader.recent.border(99)
    assert seen_GTT[:, 99, border:].all()
    assert (seen_GTT[:, 99].sum(-1) <= 41).all()
    assert not (seen_GTT[:, 99] & ~seen_GTT[:, 60])[:, :40].any()
    assert torch.equal(
        seen_GTT[:, 19], torch.ones(100).bool().expand(2, 100) & (torch.arange(100) < 20)
    )
