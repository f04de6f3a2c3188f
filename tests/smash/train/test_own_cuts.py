"""Cuts by the model's own drafts."""

import random
from pathlib import Path

import torch

from helpers.smash_processes import fresh_learner
from helpers.smash_trainings import EXAMPLES, run
from lightstride.smash.data.packing import make_batch
from lightstride.smash.judge.held_out import collect
from lightstride.smash.train.own_cuts import lengths_from_runs, own_lengths


def test_own_cuts_go_as_far_as_drafts_are_sure_and_right(tmp_path: Path) -> None:
    learner = fresh_learner()
    run(tmp_path, learner, steps=40, learning_rate=1e-2, row_tokens=200)
    model = learner.inner.model
    batch = make_batch([EXAMPLES[:3]])
    slots = batch.unmerged()
    with torch.no_grad():
        taps = model.read_packed(slots)
    with torch.no_grad():
        model.stop.weight.zero_()
        model.stop.bias.fill_(-20)
    cut = own_lengths(model, batch, slots, taps, random.Random(0))
    seen = collect(model, list(EXAMPLES[:3]), row_tokens=1000, merged=False)
    assert sum(map(len, cut)) < sum(map(sum, cut))
    assert [sum(lengths) for lengths in cut] == [len(e.answer_A) for e in EXAMPLES[:3]]
    assert sum(seen.sizes) == sum(map(sum, cut))
    with torch.no_grad():
        model.stop.bias.fill_(20)
    cut = own_lengths(model, batch, slots, taps, random.Random(0))
    assert {length for lengths in cut for length in lengths} == {1}


def test_walking_by_runs() -> None:
    assert lengths_from_runs([3, 1, 1, 2, 1, 4]) == [3, 2, 1]
    assert lengths_from_runs([]) == []
