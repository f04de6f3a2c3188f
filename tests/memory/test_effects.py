"""Second-order effects agree with the divergence measured head by head."""

import torch

from helpers.toys import tiny_gemma3, tiny_llama
from lightstride.memory.attention import heads_of
from lightstride.memory.effects import mean_effects, text_effects
from lightstride.memory.fitness import Judge, Text
from lightstride.memory.plan import ALL, Keep, MemoryPlan

KEEPS = (Keep(4, 48), Keep(0, 32))


def text(domain: str, seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 256, (160,), generator=generator).tolist()
    return Text(domain, tuple(tokens), 60)


def test_effects_are_measured_divergence() -> None:
    for model in (tiny_llama(num_layers=3), tiny_gemma3(sliding_window=64)):
        heads = heads_of(model)
        full = MemoryPlan.full(heads, 8)
        texts = [text("chat", 1)]
        judge = Judge(model, texts, full)
        found = text_effects(model, texts[0], KEEPS, 48, 0)
        pairs = []
        for block, count in enumerate(heads):
            for head in range(count):
                for rule, keep in enumerate(KEEPS):
                    keeps = [list(each) for each in full.blocks]
                    keeps[block][head] = keep
                    plan = MemoryPlan(blocks=tuple(map(tuple, keeps)), head_dim=8)
                    measured = float(judge.fidelity(plan, 0).kl_N.mean())
                    pairs.append((found[block][head][rule], measured))
        found_P, measured_P = torch.tensor(pairs).T
        assert torch.corrcoef(torch.stack([found_P.log(), measured_P.log()]))[0, 1] > 0.9
        assert 0.5 < float(found_P.sum() / measured_P.sum()) < 2


def test_the_full_cache_loses_nothing() -> None:
    model = tiny_llama()
    full = MemoryPlan.full(heads_of(model), 8)
    judge = Judge(model, [text("copy", 2)], full)
    fidelity = judge.fidelity(full, 0)
    assert judge.loss(full) == 0
    assert fidelity.same_N.all()
    assert torch.equal(fidelity.right_N, fidelity.right_full_N)
    assert text_effects(model, text("copy", 2), [ALL], 1, 0) == [[[0.0]] * 2] * 2


def test_domains_weigh_the_same() -> None:
    texts = [text("chat", 1), text("chat", 2), text("copy", 3)]
    effects = [[[[0.1]]], [[[0.3]]], [[[0.8]]]]
    assert abs(mean_effects(texts, effects)[0][0][0] - (0.2 + 0.4) / 2) < 1e-9
