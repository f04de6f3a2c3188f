"""What drafts of held-out answers come to, and that the decoder does as well."""

from pathlib import Path

import pytest
import torch

from helpers.agree import assert_same_greedy
from helpers.answered_toys import example
from helpers.smash_processes import fresh_learner
from helpers.smash_toys import features
from helpers.smash_trainings import EXAMPLES, run
from helpers.toys import byte_tokenizer
from lightstride.generate import Settings, generate
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.judge.held_out import (
    HeldOutDrafts,
    accuracy_by_place,
    collect,
    lossless_tokens_per_step,
    merged_divergence,
    trust_at,
)


def test_steps_by_hand() -> None:
    agrees = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    drafts = HeldOutDrafts(torch.full((6, 2, 3), -9.0), agrees, valid, (4, 2))
    # The first document: 3 tokens, then 1; the second: 2 tokens at once.
    assert lossless_tokens_per_step(drafts) == 6 / 3
    found = trust_at(drafts, None, 0.5)
    assert found["tokens_per_step"] == 6 / 3
    assert accuracy_by_place(drafts) == [0.75, 0.5]
    assert trust_at(drafts, None, 1.0)["tokens_per_step"] == 1


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
    seen = lossless_tokens_per_step(collect(model, cut, row_tokens=64, merged=False))
    # The decoder's first step says one token alone; its trees hold the branch that is observed.
    assert steps <= 12 * len(cut) / seen + len(cut)


@torch.no_grad()
def test_what_merging_costs_is_measured_segment_by_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_learner().inner.model
    model.stop.weight.zero_()
    model.stop.bias.fill_(20)
    alone = merged_divergence(model, EXAMPLES[:2], row_tokens=64)
    assert alone == {"kl": pytest.approx(0, abs=1e-6), "tokens_per_segment": 1}

    def in_pairs(_model, batch, *_):
        lengths = [len(document.answer_A) for row in batch.rows for document in row]
        return [[min(2, length - at) for at in range(0, length, 2)] for length in lengths]

    monkeypatch.setattr("lightstride.smash.judge.held_out.own_lengths", in_pairs)
    found = merged_divergence(model, EXAMPLES[:2], row_tokens=64)
    losses, tokens = [], 0
    for each in EXAMPLES[:2]:
        prompt, answer = each.prompt_P.tolist(), each.answer_A.tolist()
        tokens += len(answer)
        for start in range(0, len(answer), 2):
            pairs = [answer[at : at + 2] for at in range(0, start, 2)]
            ours = model.base_logits(features(model, prompt, pairs)[0, -1]).log_softmax(-1)
            text = torch.tensor([[*prompt, *answer[:start]]])
            theirs = model.base(text).logits[0, -1].log_softmax(-1)
            losses.append(float((theirs.exp() * (theirs - ours)).sum()))
    assert found["kl"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert found["tokens_per_segment"] == tokens / len(losses)
