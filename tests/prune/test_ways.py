"""The bytes of every way, counted before a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.rounds import MODEL, QUICK, runner
from lightstride.prune.footprint import footprint, stream_bytes
from lightstride.prune.ways import (
    WAYS,
    Pass,
    Room,
    block_bytes,
    choose_way,
    fits,
    footprint_of,
    passes_of,
    streamed_footprint,
)
from lightstride.search.evaluation_log import read_evaluations
from lightstride.search.evolution import EvolutionSettings

WEIGHTS = sum(parameter.nbytes for parameter in MODEL.parameters())


@pytest.mark.parametrize(
    "search",
    [QUICK, EvolutionSettings(generations=2, offspring=4, tokens=(32, 64), survivors=(2, 1))],
)
def test_a_search_makes_no_more_passes(tmp_path: Path, search: object) -> None:
    job = runner(tmp_path, search=search, num_rounds=1)
    job.plans((0.5,))
    records = read_evaluations(tmp_path / "search.jsonl")
    asked: dict[int, int] = {}
    for record in records:
        asked[record["tokens"]] = asked.get(record["tokens"], 0) + 1
    allowed: dict[int, int] = {}
    for each in passes_of(search, job.space, job.search_NL.numel()):
        allowed[each.tokens] = allowed.get(each.tokens, 0) + each.candidates * each.times
    assert all(count <= allowed[tokens] for tokens, count in asked.items())


def test_spilling_moves_activations_to_the_disk(tmp_path: Path) -> None:
    job = runner(tmp_path)
    kept = streamed_footprint(job, [0.5], Room(), held_out_tokens=64)
    spilled = streamed_footprint(job, [0.5], Room(), held_out_tokens=64, spilled=True)
    assert kept.memory["statistics"] - spilled.memory["statistics"] == stream_bytes(job)
    assert spilled.disk - kept.disk >= stream_bytes(job)
    assert kept.reads == spilled.reads > footprint(job, [0.5]).reads + 10 * WEIGHTS


def test_blocks_pass_an_accelerator(tmp_path: Path) -> None:
    job = runner(tmp_path)
    host = streamed_footprint(job, [0.5], Room())
    room = Room(memory=10 << 30, device_memory=10 << 30, devices=1)
    device = streamed_footprint(job, [0.5], room)
    assert not host.device_memory
    assert min(device.device_memory.values()) >= 2 * block_bytes(job.space.geometry, 4)
    assert device.memory["statistics"] < host.memory["statistics"]


def test_the_first_way_with_room_is_taken(tmp_path: Path) -> None:
    job = runner(tmp_path)
    sizes = {way: footprint_of(way, job, [0.5], 0, Room()) for way in WAYS}
    for way, size in sizes.items():
        room = Room(max(size.memory.values()))
        assert fits(size, room)
        chosen, its_size = choose_way(job, [0.5], 0, room)
        assert max(its_size.memory.values()) <= max(size.memory.values())
        assert WAYS.index(chosen) <= WAYS.index(way)
    last, _ = choose_way(job, [0.5], 0, Room(1))
    assert last == WAYS[-1]
    assert choose_way(job, [0.5], 0, Room(1), ways=WAYS[:1])[0] == "resident"


def test_few_plans_race_where_all_blocks_are_alike(tmp_path: Path) -> None:
    job = runner(tmp_path)
    uniform = replace(job.space, uniform=True)
    first, last = passes_of(QUICK, uniform, 128)
    assert (first.tokens, last) == (16, Pass(3, 128, 1))
