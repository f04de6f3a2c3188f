"""Rows of many and of few columns in one: the same logits, states and entries as padded."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from helpers.agree import assert_close_logits
from helpers.toys import tiny_gemma3, tiny_llama, tiny_qwen3
from lightstride.generate.batch import segments
from lightstride.generate.batch.cache import Storage
from lightstride.generate.batch.forward import CachedBatch
from lightstride.generate.modes import ColumnReader, Columns, are_ragged

PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
BRANCHING = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).bool()
ASKED = [
    Columns([11], [0], 1),
    Columns([12, 13, 14, 15], [0, 1, 1, 2], 4, BRANCHING),
    Columns.chain([16, 17]),
]


class Padding(CachedBatch):
    """The slow twin: rows are padded to one width."""

    flattens = False


@pytest.mark.parametrize("call", [0, segments.CALL])
@pytest.mark.parametrize("storage", ["dynamic", "static"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3, tiny_gemma3])
def test_flat_is_padded(
    make: Callable[[], PreTrainedModel],
    storage: Storage,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With calls for nothing every row has an attention of its own."""
    monkeypatch.setattr(segments, "CALL", call)
    model = make()
    batches = [CachedBatch(model, storage), Padding(model, storage)]
    assert are_ragged(ASKED)
    found = []
    rows = slice(0, 3)
    with torch.inference_mode():
        for batch in batches:
            for _ in PROMPTS:
                batch.add_row()
            batch.reserve(32, None)
            batch.read(rows, PROMPTS, [])
            first = ColumnReader().read(batch, rows, ASKED, [0, 1])
            batch.keep(rows, [[0], [0, 1, 3], [0]], [1, 3, 1])
            again = [Columns.chain([20]), Columns.chain([21]), Columns.chain([22, 23, 24])]
            found.append((first, ColumnReader().read(batch, rows, again, [])))
    for flat, padded in zip(*found, strict=True):
        asked = ASKED if flat is found[0][0] else [Columns.chain([0] * n) for n in (1, 1, 3)]
        for row, each in enumerate(asked):
            own = len(each.tokens)
            assert_close_logits(
                *(forward.logits.of_row(row, range(own)) for forward in (flat, padded))
            )
            for tap, states_BQD in flat.hidden.items():
                assert_close_logits(states_BQD[row, :own], padded.hidden[tap][row, :own])


def test_rows_alike_are_not_ragged() -> None:
    chain = Columns.chain([1, 2])
    assert not are_ragged([chain, chain])
    assert are_ragged([chain, Columns.chain([1])])
    merged = Columns([1], [0], 1, merged={0: [1, 2]})
    assert not are_ragged([chain, merged])
