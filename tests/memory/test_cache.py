"""A cache by head group says what the whole text says under the plan's mask."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.memory_toys import KEEPS, SLIDING, mixed_memory, one_row, read_columns
from helpers.smash_toys import fewer_queries_llama
from helpers.toys import TINY, tiny_llama
from lightstride.memory.attention import heads_of
from lightstride.memory.cache import Memory, MemoryCache
from lightstride.memory.entries import KvType
from lightstride.memory.fitness import logits_of
from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import Keep, MemoryPlan

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.fixture(autouse=True, params=[0, 119, 10_000], ids=["groups", "both", "whole"])
def held_whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns up to which all entries are held."""
    columns = request.param
    assert isinstance(columns, int)
    monkeypatch.setattr("lightstride.memory.cache.WHOLE", columns)
    return columns


def text(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def slow_logits(model: PreTrainedModel, tokens_T: Tensor, memory: Memory) -> Tensor:
    hidden_TD = masked_hidden(model, tokens_T, memory.plan, memory.scores)
    with torch.inference_mode():
        return logits_of(model, hidden_TD)


def columns(start: int, end: int) -> Tensor:
    return torch.arange(start, end)[None]


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("keeps", [KEEPS, SLIDING])
@pytest.mark.parametrize("seed", [0, 1])
def test_chunks_and_single_tokens_are_the_masked_text(
    family: str, keeps: Sequence[Keep], seed: int, held_whole: int
) -> None:
    model = TINY[family](seed=seed)
    memory = mixed_memory(model, seed, keeps=keeps)
    plan = memory.plan
    tokens_T = text(150, seed)
    cache = one_row(model, memory)
    found = []
    borders = [0, 70, 71, 117, *range(118, 151)]
    for start, end in itertools.pairwise(borders):
        found.append(read_columns(model, cache, tokens_T[None, start:end], columns(start, end))[0])
        cache.settle(torch.ones(1, end - start, dtype=torch.bool))
        if not any(cache.sliding):
            assert cache.entries == [plan.entries(end)]
        if end == 117:
            before = cache.allocated_bytes
            cache.pack()
            assert held_whole or cache.allocated_bytes < before
    torch.testing.assert_close(torch.cat(found), slow_logits(model, tokens_T, memory), **CLOSE)


@pytest.mark.parametrize("block", [0, 1])
def test_blocks_may_differ_in_query_heads_of_a_kv_head(block: int) -> None:
    model = fewer_queries_llama(block)
    memory = mixed_memory(model, keeps=[Keep(0, 20)])
    tokens_T = text(90)
    cache = one_row(model, memory)
    found = []
    for start, end in itertools.pairwise((0, 60, 66, 67, 72, 90)):
        found.append(read_columns(model, cache, tokens_T[None, start:end], columns(start, end))[0])
        cache.settle(torch.ones(1, end - start, dtype=torch.bool))
    torch.testing.assert_close(torch.cat(found), slow_logits(model, tokens_T, memory), **CLOSE)


def test_up_to_the_window_nothing_is_forgotten() -> None:
    model = tiny_llama()
    heads = heads_of(model)
    plan = MemoryPlan(blocks=tuple((Keep(0, 40),) * count for count in heads), head_dim=8)
    assert plan.exact_up_to == 40
    full = MemoryPlan.full(heads, 8)
    tokens_T = text(80)
    kept, whole = (slow_logits(model, tokens_T, Memory(each)) for each in (plan, full))
    assert torch.equal(kept[:40], whole[:40])
    assert not torch.allclose(kept[60:], whole[60:])
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens_T[None]).logits[0], whole, **CLOSE)


@pytest.mark.parametrize("keeps", [KEEPS, SLIDING])
def test_rejected_drafts_leave_nothing_behind(keeps: Sequence[Keep]) -> None:
    model = tiny_llama(num_layers=3)
    memory = mixed_memory(model, 2, keeps=keeps)
    tokens_T = text(140, 3)
    slow_TV = slow_logits(model, tokens_T, memory)
    cache = one_row(model, memory)
    read_columns(model, cache, tokens_T[None, :60], columns(0, 60))
    cache.settle(torch.ones(1, 60, dtype=torch.bool))
    place, generator = 60, torch.Generator().manual_seed(4)
    while place + 3 < 140:
        right, wrong = tokens_T[place : place + 3], torch.randint(0, 256, (2,), generator=generator)
        tree = torch.tensor([[right[0], wrong[0], right[1], wrong[1], right[2]]])
        depths = torch.tensor([[0, 1, 1, 2, 2]])
        sees = torch.eye(5, dtype=torch.bool)
        for child, parent in ((1, 0), (2, 0), (3, 1), (4, 2)):
            sees[child] |= sees[parent]
        found = read_columns(model, cache, tree, place + depths, sees[None])[0]
        torch.testing.assert_close(found[[0, 2, 4]], slow_TV[place : place + 3], **CLOSE)
        length = 1 + place % 3
        kept = torch.tensor([[True, False, length > 1, False, length > 2]])
        cache.settle(kept)
        place += length
    assert cache.entries == [memory.plan.entries(place)]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("seed", range(4))
def test_a_merged_column_that_skips_positions_sees_nothing_that_is_old(
    family: str, seed: int
) -> None:
    """Whether there are free columns or not; of positions without an entry nothing is chosen."""
    model = TINY[family](seed=seed)
    memory = mixed_memory(model, seed)
    tokens_T = text(60, seed)
    tight, roomy = one_row(model, memory), one_row(model, memory)
    for place in range(30):
        for cache in (tight, roomy):
            read_columns(model, cache, tokens_T[None, place : place + 1], columns(place, place + 1))
            cache.settle(torch.ones(1, 1, dtype=torch.bool))
    read_columns(model, roomy, tokens_T[None, 30:36], columns(30, 36))
    roomy.settle(torch.zeros(1, 6, dtype=torch.bool))
    for place in (45, 46, 61, 62, 75, 90):
        token_11 = tokens_T[None, place % 60][:, None]
        one, other = (
            read_columns(model, cache, token_11, torch.tensor([[place]]))
            for cache in (tight, roomy)
        )
        torch.testing.assert_close(one, other, **CLOSE)
        for cache in (tight, roomy):
            cache.settle(torch.ones(1, 1, dtype=torch.bool))


def test_rows_of_different_lengths_join_and_leave() -> None:
    model = tiny_llama()
    memory = mixed_memory(model, 5)
    texts = [text(120, 6), text(90, 7), text(77, 8)]
    slow = [slow_logits(model, each, memory) for each in texts]
    starts = [100, 70, 57]
    whole = MemoryCache(model, memory)
    for row, (each, start) in enumerate(zip(texts, starts, strict=True)):
        whole.add_row()
        read_columns(model, whole, each[None, :start], columns(0, start), start=row)
        whole.settle(torch.ones(1, start, dtype=torch.bool))
        whole.pack()
    rows = [0, 1, 2]
    for step in range(20):
        if step == 8:
            rows = [2, 0]
            whole.select_rows(rows)
        tokens = torch.stack([texts[row][starts[row] + step] for row in rows])[:, None]
        positions = torch.tensor([[starts[row] + step] for row in rows])
        found = read_columns(model, whole, tokens, positions)
        for index, row in enumerate(rows):
            torch.testing.assert_close(found[index, 0], slow[row][starts[row] + step], **CLOSE)
        whole.settle(torch.ones(len(rows), 1, dtype=torch.bool))
    assert whole.entries == [memory.plan.entries(starts[row] + 20) for row in rows]


def test_eight_bits_are_near_and_half_as_large() -> None:
    model = tiny_llama(head_dim=32)
    tokens_T = text(120, 10)
    kinds: tuple[KvType, KvType] = ("model", "int8")
    caches = [one_row(model, mixed_memory(model, 9, kind)) for kind in kinds]
    exact, near = (
        read_columns(model, cache, tokens_T[None], columns(0, 120))[0] for cache in caches
    )
    assert 0 < (exact - near).abs().max() < 0.1 * exact.abs().max()
    assert caches[1].allocated_bytes < 0.3 * caches[0].allocated_bytes
