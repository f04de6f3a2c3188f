"""Merged columns that see what they stand for, against reading a column at a time."""

import random

import pytest
import torch
from transformers import DynamicCache

from helpers.smash_toys import BASES, sharp, slot_batch, toy
from lightstride.models.families.registry import adapter_for
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.adapters import merged_at
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.slots import SlotBatch, with_gist_columns

PROMPT = [1, 2, 3]
SEGMENTS = [[7, 11], [65], [66, 7, 150], [11], [7, 7], [11, 65]]


def read_one_by_one(model: SmashModel, prompt: list[int], segments: list[list[int]]):
    """Last hidden states after each slot; no mask, no positions but the tokens' own."""
    cache = DynamicCache(config=model.base.config)
    position, found = 0, []

    def column(embedding_D: torch.Tensor, place: int) -> torch.Tensor:
        output = model.base(
            inputs_embeds=embedding_D[None, None],
            position_ids=torch.tensor([[place]]),
            past_key_values=cache,
            output_hidden_states=True,
        )
        return output.hidden_states[-1][0, -1]

    for segment in [*([token] for token in prompt), *segments]:
        before = cache.get_seq_length()
        for token in segment:
            last_D = column(model.embed(torch.tensor(token)), position)
            position += 1
        found.append(last_D)
        if len(segment) > 1:
            merged_D = model.merge(torch.tensor([segment]), torch.tensor([len(segment)]))[0]
            with merged_at(torch.ones(1, 1, dtype=torch.bool)):
                column(merged_D, position - 1)
            for layer in cache.layers:
                kept = [*range(before), before + len(segment)]
                layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    return torch.stack(found)


@pytest.mark.parametrize("base", BASES)
def test_segments_are_read_as_one_column_at_a_time(base: str) -> None:
    model = toy(sharp(BASES[base]()))
    with torch.no_grad():
        expected = read_one_by_one(model, PROMPT, SEGMENTS)
        found = model.read_packed(slot_batch(PROMPT, SEGMENTS))[-1][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def sees_slowly(lengths: list[int], documents: list[int]) -> list[list[int]]:
    """What each column of a row sees, told column by column."""
    columns = []
    for slot, length in enumerate(lengths):
        columns += [(slot, length == 1)] * length + [(slot, True)] * (length > 1)
    return [
        [
            other
            for other, (there, stays) in enumerate(columns[: index + 1])
            if documents[there] == documents[slot] and (there == slot or stays)
        ]
        for index, (slot, _) in enumerate(columns)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_columns_see_what_stays_and_their_own_segment(seed: int) -> None:
    rng = random.Random(seed)
    rows = [[rng.randint(1, 4) for _ in range(rng.randint(1, 9))] for _ in range(3)]
    documents = [sorted(rng.randint(0, 2) for _ in row) for row in rows]
    width = max(map(len, rows))
    tokens = torch.randint(0, 256, (3, max(map(sum, rows))))
    batch = SlotBatch(
        tokens,
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.zeros(3, width, dtype=torch.bool),
        torch.tensor([row + [9] * (width - len(row)) for row in documents]),
    )
    columns = with_gist_columns(batch)
    for row, (lengths, numbers) in enumerate(zip(rows, documents, strict=True)):
        expected = sees_slowly(lengths, numbers)
        seen = columns.sees_BQQ[row, : len(expected)]
        assert [each.nonzero()[:, 0].tolist() for each in seen] == expected
        plain = ~columns.is_gist_BQ[row, : len(expected)]
        read = columns.tokens_BQ[row, : len(expected)]
        assert read[plain].tolist() == tokens[row, : sum(lengths)].tolist()
        ends = [sum(lengths[: slot + 1]) - 1 for slot in range(len(lengths))]
        last = columns.last_BS[row, : len(lengths)]
        assert read[last].tolist() == tokens[row, ends].tolist()
        first = {number: sum(lengths[: numbers.index(number)]) for number in numbers}
        positions = columns.positions_BQ[row, : len(expected)]
        wanted = [end - first[number] for end, number in zip(ends, numbers, strict=True)]
        assert positions[last].tolist() == wanted


def test_thin_grafts_have_gists_and_published_ones_have_not() -> None:
    base = BASES["llama"]()
    geometry = adapter_for(base.config).geometry(base.config)
    assert SmashConfig.thin(base.config, geometry).gist
    assert not SmashConfig.paper(base.config, geometry).gist
