"""States that are kept are those that are computed."""

import pytest
import torch

from helpers.smash_processes import fresh_learner
from helpers.smash_trainings import EXAMPLES
from lightstride.smash.data.packing import make_batch
from lightstride.smash.train.hidden_cache import HiddenStateCache
from lightstride.smash.train.loss import LossWeights, LoweredSmashLoss


@pytest.mark.parametrize("merges", [False, True])
def test_what_is_remembered_is_what_is_read(merges: bool) -> None:
    fresh = fresh_learner()
    memory = HiddenStateCache(fresh.inner.model, EXAMPLES, row_tokens=60)
    remembers = LoweredSmashLoss(fresh.inner.model, LossWeights(), torch.float32, memory=memory)
    batch = make_batch([EXAMPLES[2:4], EXAMPLES[7:8]])
    for _ in range(2):
        expected, found = (each(batch, merges, False, "1") for each in (fresh, remembers))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert 0 < len(memory.known) < len(EXAMPLES)
    tokens = sum(len(each.answer_A) + 1 for each in EXAMPLES)
    assert HiddenStateCache.num_bytes(fresh.inner.model, EXAMPLES) == tokens * 2 * 32 * 4


def test_memory_does_not_depend_on_who_asks_first() -> None:
    model = fresh_learner().inner.model
    one, two = (HiddenStateCache(model, EXAMPLES, row_tokens=60) for _ in range(2))
    first, second = make_batch([EXAMPLES[:3]]), make_batch([EXAMPLES[3:], EXAMPLES[:3]])
    one.states(first)
    for a, b in zip(one.states(second), two.states(second), strict=True):
        assert torch.equal(a, b)
