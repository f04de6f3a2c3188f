"""A head's loss against chains one by one; what is learned, resumed and shared."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

from helpers.answered_toys import answered
from helpers.head_runs import head_learner, train_head_here, train_head_in_processes
from helpers.headed_toys import deep_toy
from lightstride.smash.data.packing import make_batch
from lightstride.smash.judge.chains import collect_chains
from lightstride.smash.judge.held_out import lossless_tokens_per_step
from lightstride.smash.train.eagle3_learner import LoweredHeadLoss
from lightstride.smash.train.loss import place_weights
from lightstride.training.checkpoint import TRAINING_FILE, TrainingFolder

EXAMPLES = answered(deep_toy(), 10)


def slow_loss(learner: LoweredHeadLoss, example, decay: float) -> float:
    """The loss of one document, chain by chain, a place a call, logits in full."""
    head, base = learner.inner.head, learner.inner.reader.base
    tokens = torch.cat([example.prompt_P, example.answer_A])
    output = base(tokens[None], output_hidden_states=True)
    taps = torch.stack([output.hidden_states[tap] for tap in head.config.taps], dim=-2)
    embeddings = base.get_input_embeddings()(tokens)[None]
    rows = head.tokens_of_rows()
    steps = learner.inner.learning.num_steps
    weights, total = place_weights(steps, decay), 0.0
    for start in range(len(tokens)):
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []

        def attend(query, key, value, keys=keys, values=values):
            keys.append(key)
            values.append(value)
            return scaled_dot_product_attention(
                query, torch.cat(keys, 2), torch.cat(values, 2), enable_gqa=True
            )

        fused, state = head.fuse(taps), None
        for place in range(start + steps):
            if place + 2 >= len(tokens):
                break
            given = fused[:, place : place + 1] if place <= start else state
            following = embeddings[:, place + 1 : place + 2]
            state = head(following, given, torch.tensor([[place]]), attend)
            target = place + 2
            is_answer = target >= len(example.prompt_P)
            greedy = output.logits[0, target - 1].argmax()
            if place >= start and is_answer and bool((rows == greedy).any()):
                ours = head.logits(state)[0, 0].log_softmax(-1)
                theirs = output.logits[0, target - 1][rows].log_softmax(-1)
                loss = (theirs.exp() * (theirs - ours)).sum()
                total += float(loss * weights[place - start])
    return total


@torch.no_grad()
def test_the_loss_is_that_of_chains_one_by_one() -> None:
    learner = head_learner(EXAMPLES)
    chosen = EXAMPLES[:3]
    expected = sum(slow_loss(learner, each, 0.8) for each in chosen)
    found = learner(make_batch([chosen[:2], chosen[2:]]), False, False, "")["loss"]
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_head_learns_in_bfloat16_on_a_base_of_that_type() -> None:
    learner = head_learner(EXAMPLES)
    batch = make_batch([EXAMPLES[:2]])
    expected = float(learner(batch, False, False, "")["loss"].detach())
    reader, learning = learner.inner.reader, learner.inner.learning
    reader.base.to(torch.bfloat16)
    lowered = LoweredHeadLoss(learner.inner.head, reader, learning, torch.bfloat16)
    loss = lowered(batch, False, False, "")["loss"]
    loss.backward()
    head = lowered.inner.head
    assert float(loss.detach()) == pytest.approx(expected, rel=0.1)
    assert head.fc.weight.grad is not None
    assert (head.fc.weight.dtype, head.lm_head.weight.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_head_learns_to_draft_the_answers(tmp_path: Path, loss: str) -> None:
    learner = head_learner(EXAMPLES, loss=loss, remembers=True)

    def tokens_per_step() -> float:
        return lossless_tokens_per_step(
            collect_chains(
                learner.inner.head, learner.inner.reader, EXAMPLES, row_tokens=90, num_steps=3
            )
        )

    before = tokens_per_step()
    rows = learner.inner.head.lm_head.weight.clone()
    train_head_here(tmp_path, learner, EXAMPLES, steps=60, learning_rate=1e-2, row_tokens=200)
    assert tokens_per_step() > before + 0.8
    assert torch.equal(rows, learner.inner.head.lm_head.weight)


def test_states_that_are_kept_are_those_that_are_read() -> None:
    fresh, remembers = head_learner(EXAMPLES), head_learner(EXAMPLES, remembers=True)
    batch = make_batch([EXAMPLES[2:4], EXAMPLES[7:8]])
    for _ in range(2):
        one, two = (each(batch, False, False, "")["loss"] for each in (fresh, remembers))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


class KilledError(Exception):
    """Stands for a kill."""


class KilledAfterTwo(TrainingFolder):
    """A folder whose process dies after two checkpoints."""

    def save(self, learner, optimizer, at) -> None:
        super().save(learner, optimizer, at)
        if at.step == 2:
            raise KilledError


def test_resumed_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole = head_learner(EXAMPLES, remembers=True)
    train_head_here(tmp_path / "whole", whole, EXAMPLES)
    first, second = (head_learner(EXAMPLES, remembers=True) for _ in range(2))
    store = tmp_path / "stopped"
    with pytest.raises(KilledError):
        train_head_here(store, first, EXAMPLES, KilledAfterTwo(store), save_minutes=0.0)
    assert train_head_here(store, second, EXAMPLES).step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        train_head_in_processes(folder, ranks)
    one, two = (load_file(tmp_path / str(ranks) / TRAINING_FILE) for ranks in (1, 2))
    names = [name for name in one if name.startswith("weight.")]
    assert names
    for name in names:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
