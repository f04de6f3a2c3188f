"""Plans: rules, exact costs, and what is refused on reading one back."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.memory_toys import toy_scores
from lightstride.errors import ConfigError, ModelError
from lightstride.memory.masks import text_mask
from lightstride.memory.plan import ALL, CHUNK, Keep, MemoryPlan
from lightstride.memory.plan_files import (
    PLAN_FILE,
    SAID,
    SCORES_FILE,
    MemoryFile,
    check_belongs,
    plan_hash,
    read_plans,
    write_plans,
)

PLAN = MemoryPlan(
    blocks=((ALL, Keep(4, 32)), (), (Keep(0, 16), Keep(2, 48))), head_dim=8, base="b", sinks=4
)


@pytest.mark.parametrize(
    "text", ["all", "16/0", "100/2", "128/4", "1/8", "64/16x4", "100/2x2", "64/best8", "512/slide"]
)
def test_a_rule_reads_back(text: str) -> None:
    assert str(Keep.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "128",
        "128/3",
        "0/4",
        "-1/2",
        "16/1",
        "1e2/2",
        "a/b",
        "64/4x5",
        "64/4x0",
        "64/0x2",
        "64/best0",
        "64/best4x2",
        "64/best",
        "0/slide",
        "64/slide2",
        "64/bestslide",
    ],
)
def test_an_unknown_rule_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        Keep.parse(text)


@pytest.mark.parametrize("text", ["all", "16/0", "40/2", "33/4", "64/8", "40/slide", "1/slide"])
def test_entries_are_what_the_next_query_sees(text: str) -> None:
    keep = Keep.parse(text)
    seen_T = text_mask(keep, 300, 4, "cpu").sum(1).tolist()
    assert [keep.entries(context, 4) + 1 for context in range(300)] == seen_T


def test_windows_move_in_chunks() -> None:
    keep = Keep(0, 40)
    borders = [keep.border(query) for query in range(200)]
    assert borders[:55] == [0] * 55
    assert {b - a for a, b in itertools.pairwise(borders)} == {0, CHUNK}
    assert all(40 <= query + 1 - keep.border(query) < 40 + CHUNK for query in range(55, 200))


def test_windows_that_slide_are_those_of_other_engines() -> None:
    """A query sees so many tokens, its own among them, and the cache keeps one fewer."""
    keep = Keep(0, 40, choice="slide")
    assert keep.entries(39, 4) == 39
    assert {keep.entries(context, 4) for context in range(40, 99)} == {39}
    ones_TT = torch.ones(90, 90, dtype=torch.bool)
    assert torch.equal(text_mask(keep, 90, 4, "cpu"), ones_TT.tril() & ones_TT.triu(-39))


def test_costs_add_up() -> None:
    context = 500
    single = [keep.entries(context, 4) for block in PLAN.blocks for keep in block]
    assert PLAN.entries(context) == sum(single)
    assert PLAN.share(context) == sum(single) / (4 * context)
    assert PLAN.bytes(context) == sum(single) * 2 * 8 * 2
    assert PLAN.bytes(context, element_bytes=1, scale_bytes=2) == sum(single) * 2 * (8 + 2)
    assert PLAN.exact_up_to == 16
    full = MemoryPlan.full([2, 0, 2], 8)
    assert full.exact_up_to is None
    assert full.share(7) == 1


def test_plans_are_read_back(tmp_path: Path) -> None:
    assert read_plans(tmp_path) is None
    file = MemoryFile({0.5: PLAN, 0.35: MemoryPlan.full([2, 0, 2], 8, "b")}, 0.5)
    write_plans(tmp_path, file, {"kl": 0.01})
    found = read_plans(tmp_path)
    assert found == file
    assert found.plan_for(None) == PLAN
    assert found.plan_for(1) is None
    with pytest.raises(ConfigError, match=r"--kv 0.4 .* 0.5, 0.35"):
        found.plan_for(0.4)
    check_belongs(PLAN, [2, 0, 2], "b", "here")
    with pytest.raises(ModelError, match="another model"):
        check_belongs(PLAN, [2, 0, 2], "c", "here")
    with pytest.raises(ModelError, match="numbers of KV heads"):
        check_belongs(PLAN, [2, 2, 2], "b", "here")


def sealed(text: str, old: str, new: str) -> str:
    """The text of a file changed, with a hash that fits again."""
    whole = json.loads(text.replace(old, new))
    whole["sha256"] = plan_hash({key: whole.get(key) for key in SAID[whole["format"]]})
    return json.dumps(whole)


def test_plans_of_the_first_format_are_read(tmp_path: Path) -> None:
    """As they were before heads could choose."""
    write_plans(tmp_path, MemoryFile({0.5: PLAN}, 0.5), {})
    path = tmp_path / PLAN_FILE
    whole = json.loads(path.read_text("utf-8"))
    del whole["scores"]
    path.write_text(sealed(json.dumps(whole), '"format": 2', '"format": 1'), "utf-8")
    assert read_plans(tmp_path) == MemoryFile({0.5: PLAN}, 0.5)


def test_scores_are_read_back_with_their_plans(tmp_path: Path) -> None:
    plan = replace(PLAN, blocks=((ALL, Keep(4, 32, choice="best")), (), (Keep(2, 48), ALL)))
    scores = toy_scores(plan)
    write_plans(tmp_path, MemoryFile({0.5: plan}, 0.5, scores), {})
    found = read_plans(tmp_path)
    assert found is not None
    assert found.plans == {0.5: plan}
    assert found.scores is not None
    assert all(map(torch.equal, found.scores.blocks, scores.blocks))
    path = tmp_path / SCORES_FILE
    data = path.read_bytes()
    for changed in (data[:-4] + bytes(4), data[:40], b""):
        path.write_bytes(changed)
        with pytest.raises(ModelError, match="damaged"):
            read_plans(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match=r"memory\.safetensors"):
        read_plans(tmp_path)
    write_plans(tmp_path, MemoryFile({0.5: plan}, 0.5), {})
    with pytest.raises(ModelError, match="no scores"):
        read_plans(tmp_path)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    write_plans(tmp_path, MemoryFile({0.5: PLAN}, 0.5), {})
    path = tmp_path / PLAN_FILE
    text = path.read_text("utf-8")
    for changed, message in (
        (text[:-40], "damaged"),
        ("[]", "damaged"),
        (text.replace('"format": 2', '"format": 9'), "another version"),
        (text.replace("32/4", "32/2"), "not what was written"),
        (sealed(text, "32/4", "32/3"), "1 of 3;"),
        (sealed(text, '"chunk": 16', '"chunk": 8'), "chunks of 8"),
        (sealed(text, '"sinks": 4', '"sinks": -1'), "sinks -1"),
        (sealed(text, '"blocks"', '"rows"'), "no list of heads"),
    ):
        path.write_text(changed, "utf-8")
        with pytest.raises(ModelError, match=message) as caught:
            read_plans(tmp_path)
        assert "\n" not in str(caught.value)


def test_every_entry_that_stays_is_seen() -> None:
    mask_TT = text_mask(Keep(4, 16), 64, 2, "cpu")
    assert torch.equal(mask_TT[63].nonzero()[:, 0][:6], torch.tensor([0, 1, 3, 7, 11, 15]))
