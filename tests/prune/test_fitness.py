"""Fitness of cut candidates, against zeroed weights and whole logits."""

from random import Random

import pytest
import torch
from torch import Tensor

from helpers.divergence import plain_divergence
from helpers.toys import tiny_llama
from lightstride.errors import ConfigError
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import Shape, Site
from lightstride.prune.cut.materialize import DenseSites, mask
from lightstride.prune.cut.refit import CutSite, prune_site
from lightstride.prune.devices import dispatched
from lightstride.prune.fitness import Fitness, FitnessSettings
from lightstride.prune.space.budget import build_space, parameter_cost
from lightstride.prune.space.plan import Plan, Space, dense_plan
from lightstride.prune.space.targets import Target
from lightstride.search.evaluation_log import Sample
from lightstride.search.moves import Moves

MODEL = tiny_llama(num_layers=3)
ADAPTER = adapter_for(MODEL.config)
DENSE = DenseSites.of(MODEL, ADAPTER)
WINDOWS_NL = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(0))


def space() -> Space:
    target = Target(name="toy", channel_multiple=8)
    return build_space(DENSE.geometry, target, parameter_cost(DENSE.geometry))


def level_of(site: Site, shape: Shape) -> CutSite:
    weight_OI = DENSE.weights[site][OUTPUT_NAME[site.kind]]
    rows_TI = torch.randn(200, weight_OI.shape[1], generator=torch.Generator().manual_seed(7))
    dense = DENSE.geometry.shape(site)
    return prune_site(weight_OI, rows_TI.T @ rows_TI, [shape], dense)[0]


def some_plans(count: int) -> list[Plan]:
    random = Random(0)
    moves = Moves(space(), space().largest)
    return [
        moves.plan(tuple(random.randrange(len(costs)) for costs in moves.costs))
        for _ in range(count)
    ]


def fitness(**settings: object) -> Fitness:
    chosen = FitnessSettings(**{"top_k": 260, **settings})  # type: ignore[arg-type]
    return Fitness(MODEL, ADAPTER, WINDOWS_NL, level_of, chosen)


def plain_fitness(plan: Plan, windows_NL: Tensor, stride: int = 1) -> float:
    levels = {site: level_of(site, shape) for site, shape in plan.shapes.items()}
    twin = mask(MODEL, ADAPTER, levels)
    with torch.no_grad():
        teacher = MODEL(windows_NL).logits[:, stride - 1 :: stride].flatten(0, 1)
        student = twin(windows_NL).logits[:, stride - 1 :: stride].flatten(0, 1)
    return float(plain_divergence(teacher, student).mean())


@pytest.mark.parametrize(
    ("batch_tokens", "slice_positions", "stride"),
    [(16, 256, 1), (32, 5, 1), (64, 16, 1), (96, 40, 3)],
)
def test_cut_cached_and_sliced_equals_zeroed_and_plain(
    batch_tokens: int, slice_positions: int, stride: int
) -> None:
    plans = some_plans(6)
    evaluate = fitness(batch_tokens=batch_tokens, slice_positions=slice_positions, stride=stride)
    values = evaluate(plans, Sample(64))
    for plan, value in zip(plans, values, strict=True):
        assert value == pytest.approx(plain_fitness(plan, WINDOWS_NL[:4], stride), rel=2e-3)


def test_the_dense_plan_has_no_divergence() -> None:
    plan = dense_plan(DENSE.geometry)
    assert fitness()([plan], Sample(32))[0] == pytest.approx(0, abs=1e-4)


def test_samples_go_round_and_start_anywhere() -> None:
    plan = some_plans(1)
    evaluate = fitness()
    value = evaluate(plan, Sample(48, first_window=4))[0]
    assert value == pytest.approx(plain_fitness(plan[0], WINDOWS_NL[[4, 5, 0]]), rel=2e-3)


def test_order_and_company_change_nothing() -> None:
    plans = some_plans(5)
    together = fitness()(plans, Sample(32))
    evaluate = fitness(cache_bytes=4 << 20)
    assert [evaluate([plan], Sample(32))[0] for plan in plans] == together
    assert list(reversed(evaluate(plans[::-1], Sample(32)))) == together


def test_dense_answers_that_do_not_fit_are_made_again() -> None:
    plans = some_plans(3)
    samples = [Sample(32), Sample(32, first_window=3), Sample(32)]
    few = fitness(cache_bytes=2 * FitnessSettings(top_k=260).answer_bytes(32))
    roomy = fitness()
    for sample in samples:
        assert few(plans, sample) == pytest.approx(roomy(plans, sample), rel=1e-5)
    assert len(few.dense_answers) == few.most_answers < len(roomy.dense_answers)


def test_shared_first_blocks_run_once() -> None:
    base = some_plans(1)[0]
    last = Site(2, "ffn")
    plans = [base.replace({last: shape}) for shape in space().choices[last]]
    evaluate = fitness()
    evaluate(plans[:1], Sample(32))
    runs: list[int] = []
    for index, block in enumerate(evaluate.blocks):
        block.register_forward_hook(lambda *_, index=index: runs.append(index))
    evaluate(plans, Sample(32))
    for block in evaluate.blocks:
        block._forward_hooks.clear()
    assert runs == [0, 1] + [2] * len(plans)


def test_the_model_is_dense_afterwards() -> None:
    before = MODEL(WINDOWS_NL).logits
    evaluate = fitness()
    evaluate(some_plans(3), Sample(32))
    assert torch.equal(MODEL(WINDOWS_NL).logits, before)
    for site, weights in DENSE.weights.items():
        now = ADAPTER.read(ADAPTER.blocks(MODEL)[site.block], site.kind)
        assert all(now[name].data_ptr() == tensor.data_ptr() for name, tensor in weights.items())


def test_a_model_spread_over_devices_is_scored_alike() -> None:
    model = tiny_llama(num_layers=3)
    plans = some_plans(3)

    def values() -> list[float]:
        evaluate = Fitness(model, ADAPTER, WINDOWS_NL, level_of, FitnessSettings(top_k=260))
        return evaluate(plans, Sample(32))

    before = values()
    with dispatched(model, ADAPTER, {"cpu": 1 << 30}):
        assert values() == before
    assert values() == before
    with (
        pytest.raises(ConfigError, match="all weights on accelerators"),
        dispatched(model, ADAPTER, {"cpu": 1000}),
    ):
        pass


def test_hidden_terms_add_up() -> None:
    plan = some_plans(1)
    alone = fitness()(plan, Sample(64))[0]
    with_hidden = fitness(hidden_weight=0.5, hidden_blocks=(0, 2), batch_tokens=32)
    levels = {site: level_of(site, shape) for site, shape in plan[0].shapes.items()}
    twin = mask(MODEL, ADAPTER, levels)
    windows_NL = WINDOWS_NL[:4]
    errors = torch.zeros(4)
    kept: dict[str, list[Tensor]] = {}
    for name, model in (("dense", MODEL), ("cut", twin)):
        for index in (0, 2):
            block = ADAPTER.blocks(model)[index]
            note = kept.setdefault(name, [])
            hook = block.register_forward_hook(lambda _, __, out, note=note: note.append(out))
            with torch.no_grad():
                model(windows_NL)
            hook.remove()
    for dense, cut in zip(kept["dense"], kept["cut"], strict=True):
        errors += (dense - cut).square().sum((1, 2)) / dense.square().sum((1, 2))
    expected = alone + 0.5 * float(errors.mean())
    assert with_hidden(plan, Sample(64))[0] == pytest.approx(expected, rel=1e-4)


def test_too_much_to_remember_and_too_little_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="MiB are allowed"):
        fitness(cache_bytes=1000)(some_plans(1), Sample(32))
    with pytest.raises(ConfigError, match="search text has 96"):
        fitness()(some_plans(1), Sample(97))
