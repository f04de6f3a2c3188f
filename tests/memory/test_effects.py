"""Second-order effects agree with the divergence measured head by head."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.memory_toys import mixed_plan, toy_scores
from helpers.toys import tiny_gemma3, tiny_llama
from lightstride.memory.attention import attend
from lightstride.memory.cache import full_plan
from lightstride.memory.effects import Attended, mean_effects, said_along, text_effects
from lightstride.memory.fitness import Judge, Text
from lightstride.memory.masked import MaskedReader
from lightstride.memory.masks import text_mask
from lightstride.memory.plan import ALL, Keep, MemoryPlan

KEEPS = (ALL, Keep(4, 48), Keep(0, 32), Keep(2, 32, choice="best"), Keep(0, 40, choice="slide"))


def text(domain: str, seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 256, (160,), generator=generator).tolist()
    return Text(domain, tuple(tokens), 60)


def pairs(model: PreTrainedModel, plan: MemoryPlan, probes: int = 48) -> tuple[Tensor, Tensor]:
    """Effects as found and as measured, of every head and every rule that it does not have."""
    texts = [text("chat", 1)]
    scores = toy_scores(plan)
    judge = Judge(model, texts, full_plan(model), scores)
    base = float(judge.fidelity(plan, 0).kl_N.mean())
    loss, found = text_effects(model, texts[0], judge.reference[0], plan, KEEPS, probes, 0, scores)
    assert abs(loss - base) < 1e-5 + 0.01 * base
    both = []
    for block, keeps in enumerate(plan.blocks):
        for head, now in enumerate(keeps):
            for rule, keep in enumerate(KEEPS):
                if keep == now:
                    assert abs(found[block][head][rule]) < 1e-7
                    continue
                changed = [list(each) for each in plan.blocks]
                changed[block][head] = keep
                other = replace(plan, blocks=tuple(map(tuple, changed)))
                measured = float(judge.fidelity(other, 0).kl_N.mean()) - base
                both.append((found[block][head][rule], measured))
    found_P, measured_P = torch.tensor(both).T
    return found_P, measured_P


def test_effects_at_the_full_cache_are_measured_divergence() -> None:
    for model in (tiny_llama(num_layers=3), tiny_gemma3(sliding_window=64)):
        found_P, measured_P = pairs(model, full_plan(model))
        assert torch.corrcoef(torch.stack([found_P.log(), measured_P.log()]))[0, 1] > 0.9
        assert 0.5 < float(found_P.sum() / measured_P.sum()) < 2


@pytest.mark.parametrize("cut", [(block, head) for block in range(3) for head in range(2)])
def test_effects_at_a_plan_that_loses_little_are_measured_changes(cut: tuple[int, int]) -> None:
    """Whichever head it is that the plan cuts."""
    model = tiny_llama(num_layers=3)
    full = full_plan(model)
    blocks = [list(keeps) for keeps in full.blocks]
    blocks[cut[0]][cut[1]] = Keep(4, 48)
    plan = replace(full, blocks=tuple(map(tuple, blocks)))
    found_P, measured_P = pairs(model, plan)
    assert (measured_P < 0).any()
    assert torch.corrcoef(torch.stack([found_P, measured_P]))[0, 1] > 0.75


@pytest.mark.parametrize("seed", range(5))
def test_effects_say_what_changes_at_any_plan(seed: int) -> None:
    """Also where so much is lost that the second term is far too large: there it counts less."""
    model = tiny_llama(num_layers=3)
    found_P, measured_P = pairs(model, mixed_plan(model, seed), probes=24)
    assert torch.corrcoef(torch.stack([found_P, measured_P]))[0, 1] > 0.7


def test_one_pass_says_what_each_mask_says() -> None:
    generator = torch.Generator().manual_seed(3)
    query_BHTd, key_BGTd, value_BGTd, along_BHTd = (
        torch.randn(1, heads, 90, 8, generator=generator) for heads in (4, 2, 2, 4)
    )
    keeps = [ALL, Keep(0, 16), Keep(2, 20), Keep(8, 33), Keep(4, 24, 3)]
    keeps.append(Keep(0, 25, choice="slide"))
    plan = MemoryPlan(blocks=((ALL, ALL),), head_dim=8, sinks=3)
    for sliding in (None, 40):
        reader = MaskedReader(plan, torch.arange(90)[None], [sliding])
        found_RKGT = said_along(
            Attended(query_BHTd, key_BGTd, value_BGTd, 0.3), along_BHTd, keeps, 0, reader
        )
        for keep, found_KGT in zip(keeps, found_RKGT, strict=True):
            mask_TT = text_mask(keep, 90, 3, "cpu", sliding)
            said_BHTd = attend(query_BHTd, key_BGTd, value_BGTd, mask_TT[None], 0.3)
            wanted_GT = (said_BHTd * along_BHTd).sum(-1).unflatten(1, (2, 2)).sum(2)[0]
            torch.testing.assert_close(found_KGT[0], wanted_GT, atol=1e-4, rtol=1e-4)


def test_the_full_cache_loses_nothing() -> None:
    model = tiny_llama()
    full = full_plan(model)
    judge = Judge(model, [text("copy", 2)], full)
    fidelity = judge.fidelity(full, 0)
    assert judge.loss(full) == 0
    assert fidelity.same_N.all()
    assert torch.equal(fidelity.right_N, fidelity.right_full_N)


def test_domains_weigh_the_same() -> None:
    texts = [text("chat", 1), text("chat", 2), text("copy", 3)]
    effects = [[[[0.1]]], [[[0.3]]], [[[0.8]]]]
    assert abs(mean_effects(texts, effects)[0][0][0] - (0.2 + 0.4) / 2) < 1e-9
