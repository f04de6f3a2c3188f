"""A block may lose its attention whole: found, cut, saved, run and refused like any other shape."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.agree import TIE, assert_close_logits, assert_same_greedy, assert_same_weights
from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.divergence import plain_divergence
from helpers.prune_runs import config_of, make_inputs
from helpers.spaces import ffn_step, geometry
from helpers.toys import EOS, TINY, byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.cli import main
from lightstride.commands.prune import prune
from lightstride.config.prune import Accumulation
from lightstride.errors import BudgetError, ConfigError, ExportError
from lightstride.export.decilm import check_decilm
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import (
    NO_ATTENTION,
    AttentionKept,
    AttentionShape,
    FFNShape,
    Shape,
    Site,
    kept_json,
    parse_kept,
)
from lightstride.models.uneven.modeling import LayeredLlamaConfig
from lightstride.prune.cut.materialize import DenseSites, mask, materialize
from lightstride.prune.cut.refit import CutSite, prune_site
from lightstride.prune.cut.supernet import build_supernet
from lightstride.prune.fitness import Fitness, FitnessSettings
from lightstride.prune.space.budget import MemorySettings, build_space, memory_cost, parameter_cost
from lightstride.prune.space.latency import LatencySettings, latency_table
from lightstride.prune.space.narrow import limit_for, narrow, uniform_plan
from lightstride.prune.space.plan import Plan, dense_plan, sparsity
from lightstride.prune.space.targets import TARGETS, Target, for_model
from lightstride.search.evaluation_log import Sample
from lightstride.search.moves import Moves
from lightstride.smash.hub import SmashModel
from lightstride.smash.train.initialize import initialize_from_base

FOUR = geometry(4)
DROPS = Target(name="drops", channel_multiple=8, heads_fixed=True, attention_optional=True)
SPACE = build_space(FOUR, DROPS, parameter_cost(FOUR))
TOKENS_NL = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(2))
NOTHING = AttentionKept((), ())
MODELS = {
    "llama": lambda: tiny_llama(num_layers=3, num_channels=512),
    "llama-bias": lambda: tiny_llama(num_layers=3, num_channels=512, bias=True),
    "mistral": lambda: TINY["mistral"](num_layers=3, num_channels=512, sliding_window=None),
    "qwen2": lambda: TINY["qwen2"](num_layers=3, num_channels=512),
}


def lost(model: PreTrainedModel, *blocks: int) -> dict[Site, CutSite]:
    """These blocks without attention."""
    return {
        Site(block, "attention"): CutSite(NOTHING, torch.zeros(model.config.hidden_size, 0), 0.0)
        for block in blocks
    }


def without(model: PreTrainedModel, *blocks: int) -> PreTrainedModel:
    return materialize(model, adapter_for(model.config), lost(model, *blocks))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS_NL).logits


def saved(model: PreTrainedModel, folder: Path) -> Path:
    save_checkpoint(model, ascii_tokenizer(), folder / "model")
    return folder / "model"


def attention_shapes(plan: Plan) -> list[Shape]:
    return [shape for site, shape in sorted(plan.shapes.items()) if site.kind == "attention"]


def test_the_target_says_where_attention_may_go() -> None:
    wide = replace(FOUR, ffn=(FFNShape(512),) * 4)
    for target in TARGETS.values():
        for site, shapes in target.admissible(wide).items():
            assert (NO_ATTENTION in shapes) is (
                target.name == "decilm" and site.kind == "attention" and site.block > 0
            )
    assert SPACE.choices[Site(1, "attention")] == (NO_ATTENTION, AttentionShape(3, 3))


def test_it_costs_nothing_in_any_coin() -> None:
    biased = replace(FOUR, attention_fixed=16)
    assert biased.parameters(NO_ATTENTION) == 0
    assert memory_cost(FOUR, MemorySettings(context=64))(Site(1, "attention"), NO_ATTENTION) == 0
    shapes = [NO_ATTENTION, AttentionShape(3, 3)]
    table = latency_table(
        FOUR,
        shapes,
        LatencySettings(context=4, repeats=1),
        dtype=torch.float32,
        device=torch.device("cpu"),
        timer=lambda call: 1.0 if call() is not None else 0.0,
    )
    assert table[shapes[0]] == 0 < table[shapes[1]]


def test_sparsity_counts_all_of_it() -> None:
    plan = dense_plan(FOUR).replace({Site(2, "attention"): NO_ATTENTION})
    share = FOUR.parameters(FOUR.attention[2]) / FOUR.prunable_parameters
    assert sparsity(plan, FOUR) == pytest.approx(share)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).key == plan.key
    assert parse_kept(kept_json(NOTHING)) == NOTHING
    assert NOTHING.shape == NO_ATTENTION


def test_the_centre_loses_attention_last_and_from_the_end() -> None:
    whole = FOUR.attention[0]
    ffn_share = ffn_step(SPACE) * (96 // 8 - 1) * 4 / SPACE.largest
    for share in (0.1, 0.3, ffn_share - 0.01):
        plan = uniform_plan(SPACE, share, limit_for(share, SPACE.largest, SPACE))
        assert attention_shapes(plan) == [whole] * 4
    plans = [
        uniform_plan(SPACE, share, limit_for(share, SPACE.largest, SPACE))
        for share in (ffn_share + 0.02, 1 - SPACE.smallest / SPACE.largest - 0.001)
    ]
    assert attention_shapes(plans[0]) == [whole] * 3 + [NO_ATTENTION]
    assert attention_shapes(plans[1]) == [whole] + [NO_ATTENTION] * 3
    for plan in plans:
        assert plan in SPACE
    with pytest.raises(BudgetError):
        limit_for(0.99, SPACE.largest, SPACE)


def test_every_round_may_still_take_or_give_it_back() -> None:
    centre = uniform_plan(SPACE, 0.3, limit_for(0.3, SPACE.largest, SPACE))
    for middle in (centre, centre.replace({Site(3, "attention"): NO_ATTENTION})):
        near = narrow(SPACE, middle, Fraction(1, 64))
        assert near.choices[Site(3, "attention")] == SPACE.choices[Site(3, "attention")]


def test_moves_stay_within_the_budget() -> None:
    limit = limit_for(0.4, SPACE.largest, SPACE)
    moves, random = Moves(SPACE, limit), Random(0)
    levels = moves.levels(uniform_plan(SPACE, 0.4, limit))
    seen = set()
    for _ in range(200):
        levels = moves.mutate(levels, random)
        plan = moves.plan(levels)
        assert SPACE.total(plan) <= limit
        assert plan.shapes[Site(0, "attention")] == FOUR.attention[0]
        seen.update(attention_shapes(plan))
    assert NO_ATTENTION in seen


def test_nothing_kept_loses_everything() -> None:
    dense = AttentionShape(2, 2)
    weight_OI, rows_TI = torch.randn(16, 16), torch.randn(200, 16)
    shapes = [NO_ATTENTION, AttentionShape(1, 1), dense]
    levels = prune_site(weight_OI, rows_TI.T @ rows_TI, shapes, dense)
    assert [level.kept.shape for level in levels] == shapes
    assert levels[0].output_OK.shape == (16, 0)
    everything = float((rows_TI @ weight_OI.T).double().square().sum()) / 2
    assert levels[0].loss == pytest.approx(everything, rel=1e-5)
    assert levels[0].loss > levels[1].loss > levels[2].loss == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_masked_twin_is_the_cut_model(name: str) -> None:
    model = MODELS[name]()
    adapter = adapter_for(model.config)
    before = logits(model)
    smaller, twin = without(model, 1, 2), mask(model, adapter, lost(model, 1, 2))
    assert (logits(smaller) - logits(twin)).abs().max() < 1e-5
    assert (logits(twin) - before).abs().max() > 1e-2
    assert torch.equal(logits(model), before)
    names = smaller.state_dict()
    assert not [each for each in names if each.startswith("model.layers.1.self_attn")]
    assert "model.layers.1.input_layernorm.weight" not in names
    assert adapter.geometry(smaller.config).attention == (
        adapter.geometry(model.config).attention[0],
        NO_ATTENTION,
        NO_ATTENTION,
    )


@pytest.mark.parametrize("name", MODELS)
def test_saved_it_is_read_back_and_generates(name: str, tmp_path: Path) -> None:
    smaller = without(MODELS[name](), 1)
    folder = saved(smaller, tmp_path)
    layers = json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert layers["1"]["skip"] == ["attention"]
    loaded = load_model(str(folder))
    assert_same_weights(loaded, smaller)
    assert_close_logits(logits(loaded), logits(smaller))
    assert loaded.num_parameters() == smaller.num_parameters()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 258}
    plain = loaded.generate(TOKENS_NL, use_cache=False, **options)
    cached = loaded.generate(TOKENS_NL, **options)
    static = loaded.generate(TOKENS_NL, cache_implementation="static", **options)
    for row, expected in enumerate(plain.tolist()):
        assert_same_greedy(loaded, [], cached[row].tolist(), expected)
        assert_same_greedy(loaded, [], static[row].tolist(), expected)
    again = tmp_path / "again"
    again.mkdir()
    assert_same_weights(load_model(str(saved(loaded, again))), smaller)


@pytest.mark.parametrize("storage", ["dynamic", "static"])
def test_our_own_cache_skips_the_block(storage: str) -> None:
    smaller = without(MODELS["llama"](), 1)
    decoder = PlainDecoder(smaller, byte_tokenizer(), storage=storage)
    prompts = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    for prompt, answer in zip(
        prompts, generate(decoder, prompts, Settings(max_new_tokens=12)), strict=True
    ):
        expected = smaller.generate(
            torch.tensor([prompt]), max_new_tokens=12, eos_token_id=EOS, pad_token_id=258
        )
        assert_same_greedy(smaller, prompt, answer.tokens, expected[0, len(prompt) :].tolist())


def test_the_folder_opens_without_this_package(tmp_path: Path) -> None:
    smaller = without(MODELS["llama"](), 2)
    folder, output = saved(smaller, tmp_path), tmp_path / "decilm"
    assert main(["export", str(folder), "-o", str(output), "--to", "decilm"]) == 0
    script = (
        "import sys; sys.modules['lightstride'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "    tokens = torch.arange(40, 60)[None]\n"
        "    print(model(tokens).logits[0, -1].topk(5).indices.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(output)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    with torch.no_grad():
        best = smaller(torch.arange(40, 60)[None]).logits[0, -1].topk(6)
    assert best.values.diff().abs().min() > TIE
    assert done.stdout.splitlines() == [str(best.indices[:5].tolist())] * 2


@pytest.mark.parametrize("name", MODELS)
def test_decilm_says_it_in_its_own_words(name: str, tmp_path: Path) -> None:
    smaller = without(MODELS[name](), 1)
    folder, output = saved(smaller, tmp_path), tmp_path / "decilm"
    assert main(["export", str(folder), "-o", str(output), "--to", "decilm"]) == 0
    blocks = json.loads((output / "config.json").read_text())["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, True, False]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, None, 2]
    engine = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    assert_close_logits(logits(engine), logits(smaller))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 258}
    expected = smaller.generate(TOKENS_NL, **options).tolist()
    for row, answer in enumerate(engine.generate(TOKENS_NL, **options).tolist()):
        assert_same_greedy(smaller, [], answer, expected[row])


def test_the_first_block_keeps_its_attention() -> None:
    with pytest.raises(Exception, match="layer 0 has no attention"):
        LayeredLlamaConfig(num_hidden_layers=2, per_layer_config={0: {"skip": ["attention"]}})
    model = MODELS["llama"]()
    dense = adapter_for(model.config).geometry(model.config)
    headless = replace(dense, attention=(NO_ATTENTION, *dense.attention[1:]))
    with pytest.raises(ExportError, match="block 0 has no attention"):
        check_decilm(headless)


def test_pruning_again_is_refused() -> None:
    config = without(MODELS["llama"](), 1).config
    with pytest.raises(ConfigError, match="block 1 of the model has no attention left"):
        for_model(TARGETS["decilm"], adapter_for(config).geometry(config))


def test_such_a_base_can_be_smashed() -> None:
    base = without(MODELS["llama"](), 2)
    model = SmashModel.graft(base)
    initialize_from_base(model)
    weights = adapter_for(base.config).read(adapter_for(base.config).blocks(base)[1], "attention")
    assert torch.equal(model.micro.layers[0].attention.query.weight, weights["query"])


def level_of(dense: DenseSites, site: Site, shape: Shape) -> CutSite:
    weight_OI = dense.weights[site][OUTPUT_NAME[site.kind]]
    rows_TI = torch.randn(600, weight_OI.shape[1], generator=torch.Generator().manual_seed(7))
    return prune_site(weight_OI, rows_TI.T @ rows_TI, [shape], dense.geometry.shape(site))[0]


def test_fitness_is_that_of_the_masked_twin() -> None:
    model = tiny_llama(num_layers=3, bias=True)
    adapter = adapter_for(model.config)
    before = logits(model)
    dense = DenseSites.of(model, adapter)
    space = build_space(dense.geometry, DROPS, parameter_cost(dense.geometry))
    random = Random(1)
    plans = [Plan({s: random.choice(space.choices[s]) for s in space.sites}) for _ in range(6)]
    assert any(NO_ATTENTION in plan.shapes.values() for plan in plans)
    evaluate = Fitness(
        model,
        adapter,
        TOKENS_NL,
        lambda site, shape: level_of(dense, site, shape),
        FitnessSettings(top_k=260),
    )
    values = evaluate(plans, Sample(64))
    assert torch.equal(logits(model), before)
    for plan, value in zip(plans, values, strict=True):
        levels = {site: level_of(dense, site, shape) for site, shape in plan.shapes.items()}
        student = logits(mask(model, adapter, levels))[:4].flatten(0, 1)
        expected = plain_divergence(before[:4].flatten(0, 1), student).mean()
        assert value == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.parametrize("accumulation", ["none", "median", "expectation"])
def test_a_supernet_holds_it(accumulation: Accumulation, tmp_path: Path) -> None:
    model = tiny_llama(bias=True)
    adapter = adapter_for(model.config)
    shapes: dict[Site, tuple[Shape, ...]] = {}
    for site in adapter.geometry(model.config).sites:
        shapes[site] = (FFNShape(24), FFNShape(48))
        if site.kind == "attention":
            shapes[site] = (NO_ATTENTION, AttentionShape(2, 2))
    centre: Mapping[Site, Shape] = {site: some[0] for site, some in shapes.items()}
    folder = tmp_path / "net"
    supernet = build_supernet(
        Resident(model), TOKENS_NL, shapes, centre, folder, accumulation=accumulation
    )
    site = Site(1, "attention")
    level = supernet.load(site, NO_ATTENTION)
    assert level.kept == NOTHING
    assert level.output_OK.shape == (32, 0)
    assert supernet.loss(site, NO_ATTENTION) > 0
    levels = {site: supernet.load(site, shape) for site, shape in centre.items() if site.block}
    smaller = materialize(model, adapter, levels)
    assert (logits(smaller) - logits(mask(model, adapter, levels))).abs().max() < 1e-5


def test_a_whole_run_may_drop_attention(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    tiny_llama(num_layers=3, num_channels=512).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = config_of(tmp_path, "run", sparsity=(0.5,), target="decilm", multiple=None, rounds=1)
    prune(config)
    plan = Plan.from_json(json.loads((tmp_path / "run/lightstride.json").read_text())["plan"])
    assert set(attention_shapes(plan)) <= {NO_ATTENTION, AttentionShape(2, 2)}
    assert (tmp_path / "run" / "search.jsonl").read_text().count("0x0") > 0
    assert load_model(str(tmp_path / "run"))(TOKENS_NL).logits.isfinite().all()
