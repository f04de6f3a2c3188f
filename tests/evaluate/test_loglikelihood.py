"""Log-likelihoods of continuations, however batched."""

from pathlib import Path

import pytest
import torch

from helpers.eval_tasks import agree, decoder, questions
from helpers.smash_toys import uneven_llama
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.evaluate import loglikelihood as scoring
from lightstride.evaluate.loglikelihood import Score, batches, group_by_context, score
from lightstride.models import passes, sliced_logits
from lightstride.models.opening.load import load_model
from lightstride.models.opening.source import Resident
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.passes import Spill


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


@pytest.mark.parametrize("family", [*TINY, "uneven"])
@pytest.mark.parametrize("batch_tokens", [40, 2048])
def test_block_by_block_the_same_rows_run(family: str, batch_tokens: int, tmp_path: Path) -> None:
    model = uneven_llama() if family == "uneven" else TINY[family]()
    save_checkpoint(model, byte_tokenizer(), tmp_path / "m", shard_bytes=30_000)
    model = load_model(str(tmp_path / "m"))
    pairs = [(list(context.encode()) or [0], list(end.encode())) for context, end in questions()]
    whole = score(model, pairs, max_length=64, batch_tokens=batch_tokens)
    source = open_streamed(str(tmp_path / "m"), dtype=torch.float32)
    for spill in (None, Spill(tmp_path / "spill")):
        found = score(source, pairs, max_length=64, batch_tokens=batch_tokens, spill=spill)
        assert close(found, whole)
        assert not (tmp_path / "spill").exists()
        assert all(parameter.is_meta for parameter in source.model.parameters())
    assert close(score(Resident(model), pairs, max_length=64, batch_tokens=batch_tokens), whole)


def close(found: list[Score], wanted: list[Score]) -> bool:
    """Equal but for the rounding of products, which depends on where in memory a matrix is."""
    likelihoods = [one.log_likelihood for one in wanted]
    assert [one.is_greedy for one in found] == [one.is_greedy for one in wanted]
    return [one.log_likelihood for one in found] == pytest.approx(likelihoods, rel=1e-7, abs=1e-6)


def test_logits_of_a_few_rows_or_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    pairs = [(list(context.encode()) or [0], list(end.encode())) for context, end in questions()]
    whole = score(model, pairs, max_length=512)
    for positions in (1, 7, 30):
        monkeypatch.setitem(sliced_logits.SLICE_BYTES, "cpu", positions * 4 * 260)
        found = score(Resident(model), pairs, max_length=512)
        agree(
            [(one.log_likelihood, one.is_greedy) for one in found],
            [(one.log_likelihood, one.is_greedy) for one in whole],
        )


def test_each_block_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    source = Resident(tiny_llama())
    original = passes.pass_block
    monkeypatch.setattr(passes, "pass_block", lambda *a: (asked.append(a[1]), original(*a)))
    pairs = [([length] * length, [1, 2, 3]) for length in range(1, 30)]
    score(source, pairs, max_length=64, batch_tokens=20)
    assert asked == [0, 1]
