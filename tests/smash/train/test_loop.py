"""Training toys: what is learned, that a kill changes nothing, that processes share the work."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.answered_toys import sharp_llama
from helpers.smash_processes import fresh_learner, train_here, train_in_processes
from helpers.smash_toys import toy
from helpers.smash_trainings import EXAMPLES, nothing, run
from lightstride.errors import ConfigError, WorkError
from lightstride.smash.judge.held_out import collect, lossless_tokens_per_step
from lightstride.smash.train.loop import (
    Stopwatch,
    TrainSettings,
    is_hit,
    make_optimizer,
    plan_steps,
    train,
)
from lightstride.smash.train.loss import LossWeights, LoweredSmashLoss
from lightstride.training.checkpoint import TRAINING_FILE, TrainingFolder


def weights(learner: LoweredSmashLoss) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad}


def test_a_model_learns_to_draft_its_own_answers(tmp_path: Path) -> None:
    learner = fresh_learner()
    model = learner.inner.model
    before = lossless_tokens_per_step(collect(model, EXAMPLES, row_tokens=64, merged=False))
    run(tmp_path, learner, steps=60, learning_rate=1e-2, merged_share=0.5, row_tokens=200)
    after = lossless_tokens_per_step(collect(model, EXAMPLES, row_tokens=64, merged=False))
    assert after > before + 0.8


def test_resumed_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole = fresh_learner()
    run(tmp_path / "whole", whole)
    for stop in (1, 4):
        folder = tmp_path / f"stop-{stop}"
        folder.mkdir()
        first = fresh_learner()
        killed = KilledAfter(folder, stop)
        with pytest.raises(KilledError):
            train(first, EXAMPLES, settings_of(), killed, nothing)
        second = fresh_learner()
        progress = run(folder, second)
        assert progress.step == 6
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(second)[name]), name


class KilledError(Exception):
    """Stands for a kill."""


class KilledAfter(TrainingFolder):
    """A folder whose process dies after some checkpoints."""

    def __init__(self, folder: Path, stop: int) -> None:
        super().__init__(folder)
        object.__setattr__(self, "left", [stop])

    def save(self, learner, optimizer, at) -> None:
        super().save(learner, optimizer, at)
        self.left[0] -= 1
        if not self.left[0]:
            raise KilledError


def settings_of(**changes: object) -> TrainSettings:
    values = {"steps": 6, "row_tokens": 40, "rows": 1, "accumulate": 2, "own_cuts_from": 0.3}
    return TrainSettings(**{**values, "save_minutes": 0.0, **changes})  # type: ignore[arg-type]


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, fresh_learner(), steps=1)
    other = LoweredSmashLoss(toy(sharp_llama(), num_layers=2), LossWeights(), torch.float32)
    with pytest.raises(WorkError, match="another training"):
        run(tmp_path, other)
    (tmp_path / TRAINING_FILE).write_bytes(b"half of a")
    with pytest.raises(WorkError, match="damaged"):
        run(tmp_path, fresh_learner())


def test_shares_of_a_timed_training_are_of_its_time() -> None:
    assert settings_of(minutes=2.0).share(3, 30.0) == 0.5
    assert settings_of(minutes=2.0).share(3, 90.0) == 0.75


def test_time_ends_a_training_cleanly(tmp_path: Path) -> None:
    progress = run(tmp_path, fresh_learner(), steps=10**6, minutes=0.02)
    assert 0 < progress.step < 10**6
    assert progress.seconds < 60
    state = load_file(tmp_path / TRAINING_FILE)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_only_grafts_move_and_all_of_them(tmp_path: Path) -> None:
    learner = fresh_learner()
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    run(tmp_path, learner, merged_share=1.0, steps=3)
    moved = {n for n, p in learner.named_parameters() if not torch.equal(p, before[n])}
    learned = {n for n, p in learner.named_parameters() if p.requires_grad}
    assert moved == learned
    assert not any(".base." in name for name in learned)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("shares_out", [False, True])
def test_two_processes_learn_what_one_does(tmp_path: Path, shares_out: bool) -> None:
    alone = train_here(tmp_path / "one", EXAMPLES)
    found = train_in_processes(tmp_path / "two", 2, shares_out=shares_out)
    one, two = (json.loads((path / "losses.json").read_text()) for path in (alone, found))
    assert one == pytest.approx(two, rel=1e-4)
    first, second = (load_file(path / TRAINING_FILE) for path in (alone, found))
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


def test_batches_that_cannot_be_shared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightstride.smash.train.loop.world_size", lambda: 2)
    with pytest.raises(ConfigError, match="3 batches a step cannot be shared by 2 processes"):
        run(tmp_path, fresh_learner(), accumulate=3)


def test_steps_left_are_the_same_steps() -> None:
    settings = settings_of(steps=8)
    every = list(plan_steps(EXAMPLES, settings, 0))
    assert list(plan_steps(EXAMPLES, settings, 5)) == every[5:]
    assert [work.number for work in every] == list(range(8))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_shares_fall_evenly(share: float) -> None:
    fallen = [is_hit(number, share) for number in range(100)]
    assert sum(fallen) == round(100 * share)
    assert sum(fallen[:10]) == round(10 * share)


def test_lower_precision_keeps_masters_of_fp32(tmp_path: Path) -> None:
    model = toy(sharp_llama().to(torch.bfloat16))
    for graft in model.grafts():
        graft.float()
    learner = LoweredSmashLoss(model, LossWeights(), torch.bfloat16)
    progress = run(tmp_path, learner, steps=2)
    assert progress.step == 2
    assert {p.dtype for p in learner.parameters() if p.requires_grad} == {torch.float32}


def test_optimizer_groups_know_vectors_and_the_base() -> None:
    learner = fresh_learner()
    for parameter in learner.inner.model.base.parameters():
        parameter.requires_grad_(True)
    groups = make_optimizer(learner, settings_of(base_rate=1e-6)).param_groups
    assert {(g["peak"], g["weight_decay"]) for g in groups} == {
        (3e-3, 0.01),
        (3e-3, 0.0),
        (1e-6, 0.01),
        (1e-6, 0.0),
    }
    assert "WORLD_SIZE" not in os.environ


def test_held_out_answers_are_looked_at_all_along_a_timed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(Stopwatch, "seconds", property(lambda _: next(ticks)))
    training = TrainSettings(steps=10_000, minutes=1, rows=1, row_tokens=40, accumulate=1)
    progress = train(fresh_learner(), EXAMPLES, training, TrainingFolder(tmp_path), nothing)
    looked_at = [each["step"] for each in progress.evaluations]
    assert progress.step == 30  # the clock is read twice a step
    assert looked_at == list(range(3, 31, 3))
