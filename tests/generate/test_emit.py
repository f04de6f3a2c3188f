"""What a step brought is accepted up to each row's cut, and counted no further."""

import torch

from lightstride.config.decoding import Settings
from lightstride.generate.batch.forward import Logits
from lightstride.generate.emit import emit
from lightstride.generate.modes import Outcome
from lightstride.generate.rows import Row


def row(key: str, limit: int, **settings: object) -> Row:
    return Row(key, (1, 2), Settings(mode="ar", **settings), b"", limit)


def test_ties_and_chances_are_counted_up_to_the_cut() -> None:
    tied, clear = [5.0, 5.0, 0.0], [5.0, 1.0, 0.0]
    logits = Logits(torch.tensor([clear, tied, tied, clear, tied]), starts=[0, 3])
    cut, sampled = row("cut", 2, logprobs=1), row("sampled", 9, temperature=0.7)
    outcomes = [
        Outcome(
            emitted=[0, 0, 0], kept=[0, 1, 2], advance=3, scored=[0, 1, 2], drafted=2, accepted=2
        ),
        Outcome(emitted=[1], kept=[0], advance=1, scored=[0]),
    ]
    ended: list[list[int]] = []
    first, second = emit([cut, sampled], outcomes, logits, [0.5, 1.0], ended.append)
    assert (first.tokens, first.finish, first.near_ties) == ((0, 0), "length", 1)
    assert first.logprobs is not None
    assert len(first.logprobs) == 2
    assert first.kv_entries == 1
    assert (second.tokens, second.finish, second.near_ties) == ((1,), None, 0)
    assert ended == [[0, 0]]


def test_a_step_without_plain_rows_has_no_ties() -> None:
    sampled = row("sampled", 9, temperature=0.7)
    outcome = Outcome(emitted=[1], kept=[0], advance=1, scored=[0])
    (step,) = emit([sampled], [outcome], Logits(torch.zeros(1, 3), [0]), [1.0], None)
    assert step.near_ties == 0
