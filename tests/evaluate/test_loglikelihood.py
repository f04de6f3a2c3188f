"""Log-likelihoods of continuations, however batched."""

import pytest
import torch

from helpers.eval_tasks import agree, decoder, questions
from helpers.toys import tiny_llama
from lightstride.evaluate import loglikelihood as scoring
from lightstride.evaluate.loglikelihood import batches, group_by_context, score


def test_the_likeliest_continuation_is_called_greedy() -> None:
    one = decoder()
    tokens = one.tokenizer.encode("a light ")
    with torch.inference_mode():
        for _ in range(4):
            logits = one.model(torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
    start = len(tokens) - 4
    greedy, other, first = score(
        one.model,
        [
            (tokens[:start], tokens[start:]),
            (tokens[:start], [*tokens[start:-1], (tokens[-1] + 1) % 256]),
            (tokens[:start], tokens[start : start + 1]),
        ],
        max_length=64,
    )
    assert (greedy.is_greedy, other.is_greedy, first.is_greedy) == (True, False, True)


def test_token_scores_are_those_of_log_softmax_and_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightstride.models.sliced_logits.CACHED_BYTES", 1000)
    logits = torch.randn(40, 3, 50).bfloat16()  # rounded, so that some are equal
    targets = logits.argmax(2)
    targets[:20] = (logits == logits.amax(2, keepdim=True)).int().flip(2).argmax(2)[:20].mul(
        -1
    ) + 49
    targets[30:] = torch.randint(50, (10, 3))
    real = torch.rand(40, 3) < 0.8
    values, greedy = scoring.token_scores(logits, targets, real)
    plain = logits.float().log_softmax(2).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(values, plain.where(real, 0.0).sum(1))
    likeliest = ((logits.argmax(2) == targets) | ~real).all(1)
    assert greedy.tolist() == likeliest.tolist()
    assert not likeliest[:20].all()


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_do_not_change_scores(batch_tokens: int) -> None:
    model = tiny_llama()
    pairs = [(list(context.encode()) or [0], list(end.encode())) for context, end in questions()]
    whole = score(model, pairs, max_length=512)
    cut = score(model, pairs, max_length=512, batch_tokens=batch_tokens)
    agree(
        [(one.log_likelihood, one.is_greedy) for one in cut],
        [(one.log_likelihood, one.is_greedy) for one in whole],
    )


def test_every_context_is_computed_once() -> None:
    model = tiny_llama()
    rows: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    score(model, [([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([1, 2, 3], [7, 8, 9])], max_length=64)
    assert rows == [(1, 3), (2, 2)]


def test_groups_and_batches() -> None:
    groups = group_by_context([([1], [2]), ([1, 1], [3]), ([1], [4, 5])], max_length=8)
    assert [(group.context, [row.index for row in group.rows]) for group in groups] == [
        ((1, 1), [1]),
        ((1,), [0, 2]),
    ]
    assert list(batches([5, 4, 4, 1], 8)) == [slice(0, 1), slice(1, 3), slice(3, 4)]
    assert list(batches([90, 80, 60, 50, 9, 9], 800)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert list(batches([1, 1, 1], 800)) == [slice(0, 3)]
