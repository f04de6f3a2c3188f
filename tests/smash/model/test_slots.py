"""Merged columns, against reading a column at a time."""

import pytest
import torch
from transformers import DynamicCache

from helpers.smash_toys import BASES, sharp, slot_batch, toy
from lightstride.smash.hub import SmashModel

PROMPT = [1, 2, 3]
SEGMENTS = [[7, 11], [65], [66, 7, 150], [11], [7, 7], [11, 65]]


def read_one_by_one(model: SmashModel, prompt: list[int], segments: list[list[int]]):
    """Last hidden states after each slot; no mask, no positions but the last tokens' own."""
    cache = DynamicCache(config=model.base.config)
    position, found = -1, []
    for segment in [*([token] for token in prompt), *segments]:
        position += len(segment)
        merged_1D = model.merge(torch.tensor([segment]), torch.tensor([len(segment)]))
        output = model.base(
            inputs_embeds=merged_1D[None],
            position_ids=torch.tensor([[position]]),
            past_key_values=cache,
            output_hidden_states=True,
        )
        found.append(output.hidden_states[-1][0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("base", BASES)
def test_segments_are_read_as_one_column_at_a_time(base: str) -> None:
    model = toy(sharp(BASES[base]()))
    with torch.no_grad():
        expected = read_one_by_one(model, PROMPT, SEGMENTS)
        found = model.read_packed(slot_batch(PROMPT, SEGMENTS))[-1][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
