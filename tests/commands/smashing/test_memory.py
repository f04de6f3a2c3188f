"""`lightstride smash --kv`: plans are searched, saved, picked, and refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from helpers.smash_toys import toy, uneven_llama
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.commands.smash import smash
from lightstride.commands.smashing.memory import MemorySearch, full_plan, search_memory
from lightstride.config import SmashRunConfig
from lightstride.errors import BudgetError, ConfigError, ModelError, WorkError
from lightstride.generate import Settings, generate
from lightstride.memory.choose import best_space
from lightstride.memory.plan import Keep, MemoryPlan
from lightstride.memory.plan_files import PLAN_FILE, SCORES_FILE, read_plans
from lightstride.memory.space import MemorySpace, keeps_for, limit_of, spaces_of

CONTEXT = 320


@pytest.fixture(scope="module")
def smashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smashed toy with the plans of two budgets."""
    folder = tmp_path_factory.mktemp("memory")
    base, grafts, output = folder / "base", folder / "grafts", folder / "planned"
    model = tiny_llama(tied=False)
    save_checkpoint(model, byte_tokenizer(), base)
    grafted = toy(model)
    grafted.config.base = str(base)
    save_checkpoint(grafted, byte_tokenizer(), grafts)
    config = SmashRunConfig(
        model=str(grafts), output=str(output), kv=(0.8, 0.6), kv_context=CONTEXT
    )
    result = smash(config)
    plans = result["numbers"]["plans"]
    assert set(plans) == {"0.8", "0.6"}
    for budget, found in plans.items():
        assert found["entries_per_token"]["500"] <= float(budget)
        assert set(found["held_out"]) == {"chat", "maths", "code", "copy", "lookup"}
    with pytest.raises(WorkError, match="unfinished run"):
        smash(
            SmashRunConfig(
                **{**config.as_dict(), "output": str(folder / "again"), "work": f"{output}.work"}
            )
        )
    return output


def test_plans_are_within_their_budgets(smashed: Path) -> None:
    file = read_plans(smashed)
    assert file is not None
    assert file.default == 0.8
    for budget, plan in file.plans.items():
        assert plan.entries(CONTEXT) <= budget * 4 * CONTEXT
        assert plan.entries(CONTEXT) > 0.9 * budget * 4 * CONTEXT


def test_a_decoder_takes_the_plan_that_is_asked_for(
    smashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightstride.memory.cache.WHOLE", 0)  # short texts have plans' sizes too
    prompt = [list(range(65, 90)) * 14]
    bytes_of = {}
    for kv in (None, 1.0, 0.8, 0.6):
        decoder = open_decoder(str(smashed), kv=kv)
        settings = Settings(max_new_tokens=8, mode="ar", ignore_end_tokens=True)
        bytes_of[kv] = [*decoder.steps(prompt, settings)][-1].allocated_bytes
        assert len(generate(decoder, prompt, settings)[0].tokens) == 8
    assert bytes_of[None] == bytes_of[0.8]
    assert bytes_of[0.6] < bytes_of[0.8] < bytes_of[1.0]
    eight = open_decoder(str(smashed), kv=1.0, kv_type="int8")
    assert [*eight.steps(prompt, settings)][-1].allocated_bytes < 0.45 * bytes_of[1.0]


def test_what_is_not_there_is_refused_in_one_line(smashed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--kv 0\.3 is not among"):
        open_decoder(str(smashed), kv=0.3)
    plain = tmp_path / "plain"
    save_checkpoint(tiny_llama(seed=1), byte_tokenizer(), plain)
    with pytest.raises(ConfigError, match="has no memory plan"):
        open_decoder(str(plain), kv=0.5)
    for name in (PLAN_FILE, SCORES_FILE):
        (plain / name).write_bytes((smashed / name).read_bytes())
    with pytest.raises(ModelError, match="another model"):
        open_decoder(str(plain), kv=0.8)
    (plain / PLAN_FILE).write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        open_decoder(str(plain))


def test_plans_by_block_need_plans() -> None:
    with pytest.raises(
        ConfigError, match="--kv-by block is not allowed: it must be left out without --kv"
    ):
        SmashRunConfig(model="m", output="o", kv_by="block")


@pytest.mark.parametrize("kv", [(0.0,), (-1.0,), (1.5,), (float("nan"),)])
def test_budgets_outside_are_refused(kv: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--kv"):
        SmashRunConfig(model="m", output="o", kv=kv)


def test_a_budget_below_sinks_and_window_is_refused() -> None:
    full = full_plan(tiny_llama())
    with pytest.raises(BudgetError, match="below the smallest window"):
        limit_of(full, 0.05, 1000)
    assert limit_of(full, 0.5, 1000) == 2000


def test_the_space_counts_what_plans_hold() -> None:
    full = full_plan(tiny_llama())
    keeps = keeps_for(700)
    space = MemorySpace.of(full, 700, keeps, "head")
    assert keeps[0] == Keep(0, 64)
    levels = (0, 3, len(keeps) - 1, 5)
    plan = space.plan(levels)
    assert space.levels(plan) == levels
    assert space.total(plan) == plan.plan.entries(700)
    assert [*space.level_costs[0]] == sorted(space.level_costs[0])


def test_by_block_a_plan_has_one_size_of_window() -> None:
    full = MemoryPlan.full([2, 0, 3, 1], 8, "b")
    keeps = keeps_for(300, "block")
    assert [*map(str, keeps)] == ["64/slide", "128/slide", "256/slide", "all"]
    spaces = spaces_of(full, 300, "block")
    assert [[*map(str, each.choices[2, (0, 1, 2)])] for each in spaces] == [
        [str(keep), "all"] for keep in keeps[:-1]
    ]
    for space in spaces:
        plan = space.plan((1, 0, 1))
        assert space.levels(plan) == (1, 0, 1)
        assert space.total(plan) == plan.plan.entries(300)
        assert [len(block) for block in plan.plan.blocks] == [2, 0, 3, 1]
    last = [[9.0, 8.0, 7.0, 0.0]]
    worth = [[[9.0, 5.0, 1.0, 0.0]] * 2, [], [[8.0, 4.0, 3.9, 0.0]] * 3, last]
    assert best_space(spaces, 1300, keeps, worth) is spaces[1]
    assert best_space(spaces, 1750, keeps, worth) is spaces[2]
    with pytest.raises(BudgetError, match="below the smallest window"):
        limit_of(full, 0.2, 300, "block")


def test_a_killed_search_goes_on_from_what_it_measured(tmp_path: Path) -> None:
    model = tiny_llama()
    search = MemorySearch(
        budgets=(0.6,), context=CONTEXT, conversations=2, recalls=2, length=350, probes=1
    )
    plans, numbers = search_memory(model, byte_tokenizer(), search, tmp_path)
    log = tmp_path / "memory-search.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + "\n")
    torch.manual_seed(5)
    again, others = search_memory(model, byte_tokenizer(), search, tmp_path)
    assert again == plans
    assert others["plans"] == numbers["plans"]
    texts = json.loads((tmp_path / "memory-texts.json").read_text())["texts"]
    assert {text["domain"] for text in texts} == {"chat", "maths", "code", "copy", "lookup"}


def test_a_pruned_base_of_uneven_heads_has_plans_too(tmp_path: Path) -> None:
    model = uneven_llama()
    base, grafts, output = tmp_path / "base", tmp_path / "grafts", tmp_path / "planned"
    save_checkpoint(model, byte_tokenizer(), base)
    grafted = toy(model)
    grafted.config.base = str(base)
    save_checkpoint(grafted, byte_tokenizer(), grafts)
    smash(SmashRunConfig(model=str(grafts), output=str(output), kv=(0.7,), kv_context=CONTEXT))
    file = read_plans(output)
    assert file is not None
    plan = file.plans[0.7]
    assert [len(block) for block in plan.blocks] == [1, 2]
    assert plan.entries(CONTEXT) <= 0.7 * 3 * CONTEXT
    prompt = [list(range(65, 90)) * 14]
    answers = {}
    for mode in ("ar", "lossless"):
        settings = Settings(max_new_tokens=24, mode=mode, ignore_end_tokens=True)
        answers[mode] = generate(open_decoder(str(output)), prompt, settings)[0].tokens
    assert answers["lossless"] == answers["ar"]
