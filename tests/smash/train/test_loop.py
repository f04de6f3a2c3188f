"""Training toys: what is learned, that a kill changes nothing, that processes share the work."""

import itertools
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.agree import TIE, assert_same_greedy
from helpers.answered_toys import answered, example, sharp_llama
from helpers.smash_processes import fresh_learner, train_here, train_in_processes
from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError, WorkError
from lightstride.generate import Settings, generate
from lightstride.smash.data.packing import make_batch
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.judge.held_out import lossless_tokens_per_step, observe
from lightstride.smash.train.hidden_cache import Memory
from lightstride.smash.train.loop import Clock, Training, falls, make_optimizer, plan_steps, train
from lightstride.smash.train.loss import Learner, Learning, compare, place_weights, tokens_of_drafts
from lightstride.smash.train.own_cuts import own_lengths, walk
from lightstride.smash.train.teacher_forced import find_starts, predict_drafts, tokens_at
from lightstride.training.checkpoint import KEPT_LOSSES, NAME, Progress, TrainingFolder
from lightstride.training.schedule import rate_at

EXAMPLES = answered(sharp_llama(), 12)


def nothing() -> dict[str, object]:
    return {}


def run(folder: Path, learner: Learner, **changes: object) -> Progress:
    settings: dict[str, object] = {
        "steps": 6,
        "row_tokens": 40,
        "rows": 1,
        "accumulate": 2,
        "own_cuts_from": 0.3,
        "save_minutes": 100.0,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    training = Training(**settings)  # type: ignore[arg-type]
    return train(learner, EXAMPLES, training, TrainingFolder(folder), nothing)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad}


def test_a_model_learns_to_draft_its_own_answers(tmp_path: Path) -> None:
    learner = fresh_learner()
    model = learner.inner.model
    before = lossless_tokens_per_step(observe(model, EXAMPLES, row_tokens=64, merged=False))
    run(tmp_path, learner, steps=60, learning_rate=1e-2, merged_share=0.5, row_tokens=200)
    after = lossless_tokens_per_step(observe(model, EXAMPLES, row_tokens=64, merged=False))
    assert after > before + 0.8


def test_observed_steps_are_those_of_the_decoder(tmp_path: Path) -> None:
    learner = fresh_learner()
    run(tmp_path, learner, steps=30, learning_rate=1e-2, merged_share=0.0, row_tokens=200)
    model = learner.inner.model
    settings = Settings(max_new_tokens=12, mode="lossless", confidence=1e-6, ignore_end_tokens=True)
    decoder = SmashDecoder(model, byte_tokenizer())
    steps = 0
    chosen = [e for e in EXAMPLES if len(e.answer_A) >= 12][:4]
    cut = [example(e.id, e.prompt_P.tolist(), e.answer_A[:12].tolist(), model.base) for e in chosen]
    for each in cut:
        (found,) = generate(decoder, [each.prompt_P.tolist()], settings)
        assert_same_greedy(model.base, each.prompt_P.tolist(), found.tokens, each.answer_A.tolist())
        steps += found.macro_steps
    seen = lossless_tokens_per_step(observe(model, cut, row_tokens=64, merged=False))
    # The decoder's first step says one token alone; its trees hold the branch that is observed.
    assert steps <= 12 * len(cut) / seen + len(cut)


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


def settings_of(**changes: object) -> Training:
    values = {"steps": 6, "row_tokens": 40, "rows": 1, "accumulate": 2, "own_cuts_from": 0.3}
    return Training(**{**values, "save_minutes": 0.0, **changes})  # type: ignore[arg-type]


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, fresh_learner(), steps=1)
    other = Learner(toy(sharp_llama(), num_layers=2), Learning(), torch.float32)
    with pytest.raises(WorkError, match="another training"):
        run(tmp_path, other)
    (tmp_path / NAME).write_bytes(b"half of a")
    with pytest.raises(WorkError, match="damaged"):
        run(tmp_path, fresh_learner())


def test_time_ends_a_training_cleanly(tmp_path: Path) -> None:
    progress = run(tmp_path, fresh_learner(), steps=10**6, minutes=0.02)
    assert 0 < progress.step < 10**6
    assert progress.seconds < 60
    state = load_file(tmp_path / NAME)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_only_grafts_move_and_all_of_them(tmp_path: Path) -> None:
    learner = fresh_learner(adapter_rank=2)
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
    first, second = (load_file(path / NAME) for path in (alone, found))
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


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [rate_at(share / 100, 0.1) for share in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1
    assert 0 < rates[0] < 0.02
    assert rates[-1] == pytest.approx(0)
    assert settings_of(minutes=2.0).share(3, 30.0) == 0.5
    assert settings_of(minutes=2.0).share(3, 90.0) == 0.75


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_shares_fall_evenly(share: float) -> None:
    fallen = [falls(number, share) for number in range(100)]
    assert sum(fallen) == round(100 * share)
    assert sum(fallen[:10]) == round(10 * share)


def test_lower_precision_keeps_masters_of_fp32(tmp_path: Path) -> None:
    model = toy(sharp_llama().to(torch.bfloat16), adapter_rank=0)
    for graft in model.grafts():
        graft.float()
    learner = Learner(model, Learning(), torch.bfloat16)
    progress = run(tmp_path, learner, steps=2)
    assert progress.step == 2
    assert {p.dtype for p in learner.parameters() if p.requires_grad} == {torch.float32}


def test_own_cuts_go_as_far_as_drafts_are_sure_and_right(tmp_path: Path) -> None:
    learner = fresh_learner()
    run(tmp_path, learner, steps=40, learning_rate=1e-2, row_tokens=200)
    model = learner.inner.model
    batch = make_batch([EXAMPLES[:3]])
    slots = batch.apart()
    with torch.no_grad():
        taps = model.read_segments(slots)
    with torch.no_grad():
        model.stop.weight.zero_()
        model.stop.bias.fill_(-20)
    cut = own_lengths(model, batch, slots, taps, random.Random(0), split_share=0.0)
    seen = observe(model, list(EXAMPLES[:3]), row_tokens=1000, merged=False)
    assert sum(map(len, cut)) < sum(map(sum, cut))
    assert [sum(lengths) for lengths in cut] == [len(e.answer_A) for e in EXAMPLES[:3]]
    assert sum(seen.sizes) == sum(map(sum, cut))
    with torch.no_grad():
        model.stop.bias.fill_(20)
    cut = own_lengths(model, batch, slots, taps, random.Random(0), split_share=0.0)
    assert {length for lengths in cut for length in lengths} == {1}


@pytest.mark.parametrize("merges", [False, True])
def test_what_is_remembered_is_what_is_read(merges: bool) -> None:
    fresh = fresh_learner()
    memory = Memory(fresh.inner.model, EXAMPLES, row_tokens=60)
    remembers = Learner(fresh.inner.model, Learning(), torch.float32, memory=memory)
    batch = make_batch([EXAMPLES[2:4], EXAMPLES[7:8]])
    for _ in range(2):
        expected, found = (each(batch, merges, False, "1") for each in (fresh, remembers))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert 0 < len(memory.known) < len(EXAMPLES)
    tokens = sum(len(each.answer_A) + 1 for each in EXAMPLES)
    assert Memory.num_bytes(fresh.inner.model, EXAMPLES) == tokens * 2 * 32 * 4


def test_memory_does_not_depend_on_who_asks_first() -> None:
    model = fresh_learner().inner.model
    one, two = (Memory(model, EXAMPLES, row_tokens=60) for _ in range(2))
    first, second = make_batch([EXAMPLES[:3]]), make_batch([EXAMPLES[3:], EXAMPLES[:3]])
    one.taps(first)
    for a, b in zip(one.taps(second), two.taps(second), strict=True):
        assert torch.equal(a, b)


def test_short_drafts_teach_their_places_as_long_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(sharp_llama(), num_layers=1, max_segment=5)
    batch = make_batch([EXAMPLES[2:4], EXAMPLES[7:8]])
    taps = model.read_segments(batch.apart())
    found = []
    for num_tokens in (3, 5):
        starts = find_starts(batch.apart(), batch.documents_BL, num_tokens)
        drafts = predict_drafts(model, taps, starts, tokens_at(batch.tokens_BL, starts))
        leads = model.micro_logits(drafts.vectors_NKD).topk(2).values.diff().abs()
        assert leads.min() > TIE  # so that no rounding changes what is likeliest
        found.append(compare(model, drafts, batch, taps[-1], Learning()))
        weights = torch.tensor([*place_weights(4, 0.85)[:2], 0, 0])
        monkeypatch.setattr("lightstride.smash.train.loss.place_weights", lambda *_, w=weights: w)
    short, long = found
    assert short.loss > 0
    torch.testing.assert_close(short.loss, long.loss)
    assert torch.equal(short.agrees_NJ, long.agrees_NJ[:, :2])


def test_some_readings_have_short_drafts() -> None:
    rng = random.Random(0)
    lengths = Counter(tokens_of_drafts(6, 0.6, rng) for _ in range(1000))
    assert set(lengths) == {2, 3, 6}
    assert lengths[6] == pytest.approx(400, abs=50)
    assert lengths[2] == pytest.approx(300, abs=50)
    assert {tokens_of_drafts(2, 1.0, rng) for _ in range(20)} == {2}
    assert {tokens_of_drafts(1, 0.5, rng) for _ in range(20)} == {1}


def test_walking_by_runs() -> None:
    assert walk([3, 1, 1, 2, 1, 4]) == [3, 2, 1]
    assert walk([]) == []


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
    monkeypatch.setattr(Clock, "seconds", property(lambda _: next(ticks)))
    training = Training(steps=10_000, minutes=1, rows=1, row_tokens=40, accumulate=1)
    progress = train(fresh_learner(), EXAMPLES, training, TrainingFolder(tmp_path), nothing)
    looked_at = [each["step"] for each in progress.evaluations]
    assert progress.step == 30  # the clock is read twice a step
    assert looked_at == list(range(3, 31, 3))


def test_the_learning_curve_keeps_even_spacing() -> None:
    progress = Progress()
    for step in range(1, 5001):
        progress.step = step
        progress.note({"loss": float(step)})
    steps = [step for step, _ in progress.losses]
    assert 100 < len(steps) <= 2 * KEPT_LOSSES
    assert steps[0] == 1
    assert set(torch.tensor(steps).diff().tolist()) == {steps[1] - steps[0]}
    assert steps[-1] > 4900
