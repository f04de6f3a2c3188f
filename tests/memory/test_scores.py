"""Scores choose as many as the last of every n, move them where those stood, and are learned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.memory_toys import toy_scores
from helpers.toys import tiny_llama
from lightstride.memory.cache import full_plan
from lightstride.memory.learn_scores import Learner, learn_scores, normal, solved
from lightstride.memory.masked import MaskedReader
from lightstride.memory.masks import stays, text_mask
from lightstride.memory.plan import ALL, CHUNK, Keep, MemoryPlan
from lightstride.memory.plan_files import read_scores, write_scores
from lightstride.memory.scores import Scores, best_places, moves


@pytest.mark.parametrize("every", [2, 4, 8, 16])
@pytest.mark.parametrize("sinks", [0, 3, 4, 20])
def test_as_many_stay_as_of_the_last_and_the_best_do(every: int, sinks: int) -> None:
    keep = Keep(every, 32, choice="best")
    generator = torch.Generator().manual_seed(every + sinks)
    positions_NW = torch.arange(96).view(-1, CHUNK)
    scores_NW = torch.randn(positions_NW.shape, generator=generator)
    best_NW = best_places(scores_NW, positions_NW, keep, sinks)
    held_NW = stays(keep, positions_NW, sinks)
    assert torch.equal(best_NW.sum(-1), held_NW.sum(-1))
    assert best_NW[positions_NW < sinks].all()
    for best_W, score_W, position_W in zip(best_NW, scores_NW, positions_NW, strict=True):
        chosen_W, lost_W = best_W & (position_W >= sinks), ~best_W
        if chosen_W.any() and lost_W.any():
            assert score_W[chosen_W].min() > score_W[lost_W].max()
    sources_NW = moves(best_NW, positions_NW, keep, sinks)
    for best_W, held_W, source_W in zip(best_NW, held_NW, sources_NW, strict=True):
        assert source_W[held_W].tolist() == best_W.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_of_places_without_an_entry_nothing_stays(seed: int) -> None:
    keep = Keep(4, 32, choice="best")
    generator = torch.Generator().manual_seed(seed)
    positions_NW = torch.arange(96).view(-1, CHUNK)
    there_NW = torch.rand(positions_NW.shape, generator=generator) < 0.5
    scores_NW = torch.randn(positions_NW.shape, generator=generator)
    best_NW = best_places(scores_NW, positions_NW, keep, 3, there_NW)
    held_NW = stays(keep, positions_NW, 3) & there_NW
    assert not (best_NW & ~there_NW).any()
    assert torch.equal(best_NW.sum(-1), held_NW.sum(-1))
    sources_NW = moves(best_NW, positions_NW, keep, 3, there_NW)
    for best_W, held_W, source_W in zip(best_NW, held_NW, sources_NW, strict=True):
        assert source_W[held_W].tolist() == best_W.nonzero()[:, 0].tolist()


def test_equal_scores_keep_the_first() -> None:
    keep = Keep(8, 32, choice="best")
    best_W = best_places(torch.zeros(CHUNK), torch.arange(CHUNK, 2 * CHUNK), keep, 4)
    assert best_W.nonzero()[:, 0].tolist() == [0, 1]


def test_the_masked_text_sees_what_was_chosen() -> None:
    plan = MemoryPlan(blocks=((ALL, Keep(4, 20, choice="best")),), head_dim=8, sinks=3)
    generator = torch.Generator().manual_seed(1)
    key_BGTd, value_BGTd = torch.randn(2, 1, 1, 90, 8, generator=generator)
    reader = MaskedReader(plan, torch.arange(90)[None], [None], toy_scores(plan))
    seen_TT = reader.chosen(0, torch.tensor([1]), key_BGTd, value_BGTd)[0, 0]
    assert torch.equal(seen_TT.sum(1), text_mask(Keep(4, 20), 90, 3, "cpu").sum(1))
    later_TT = torch.ones(90, 90).triu(1).bool()
    gone_TT = ~seen_TT & ~later_TT
    assert not (gone_TT[:-1] & seen_TT[1:]).any()


def test_weights_are_the_ridge_regressions() -> None:
    generator = torch.Generator().manual_seed(2)
    numbers_MF = torch.randn(64, 5, generator=generator)
    weights_F = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    level_M = torch.randn(4, generator=generator).repeat_interleave(CHUNK)
    gram_FF, moment_F = normal(numbers_MF, numbers_MF @ weights_F + level_M)
    found_F = torch.linalg.solve(gram_FF, moment_F).float()
    torch.testing.assert_close(found_F, weights_F, atol=1e-4, rtol=1e-4)


def looked_at(direction_d: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a text whose queries look along one direction."""
    generator = torch.Generator().manual_seed(seed)
    query_BHTd = direction_d + torch.randn(1, 4, 500, 8, generator=generator) / 2
    key_BGTd, value_BGTd = torch.randn(2, 1, 2, 500, 8, generator=generator)
    return query_BHTd, key_BGTd, value_BGTd


def test_scores_follow_the_attention_that_entries_get() -> None:
    direction_d = torch.tensor([2.0, -1.0, 0.0, 1.0, 0.0, -2.0, 0.0, 1.0])
    learner = Learner()
    states = looked_at(direction_d, 4)
    wanted_BHTd = torch.nn.functional.scaled_dot_product_attention(
        *states, scale=0.3, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(learner.read(0, *states, 0.3), wanted_BHTd, atol=1e-5, rtol=1e-4)
    scores = Scores([solved(learner.found[0])])
    _, key_BGTd, value_BGTd = looked_at(direction_d, 5)
    found_GT = scores.of(0, torch.arange(2), key_BGTd, value_BGTd)[0]
    for found_T, wanted_T in zip(found_GT, key_BGTd[0] @ direction_d, strict=True):
        assert torch.corrcoef(torch.stack([found_T, wanted_T]))[0, 1] > 0.9


def test_all_heads_of_a_model_have_scores(tmp_path: Path) -> None:
    model = tiny_llama(num_layers=3)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in (400, 50)]
    scores = learn_scores(model, texts)
    zeros = Scores.zeros(full_plan(model))
    assert [weight.shape for weight in scores.blocks] == [weight.shape for weight in zeros.blocks]
    assert all(bool(weight.any()) for weight in scores.blocks)
    write_scores(tmp_path, scores)
    assert all(map(torch.equal, read_scores(tmp_path).blocks, scores.blocks))
