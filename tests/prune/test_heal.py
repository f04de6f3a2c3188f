"""Healing a cut model: it learns from the dense one, which stays as it is."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from helpers.cuts import VARIANTS
from helpers.prune_runs import config_of, finish, make_inputs
from helpers.toys import tiny_llama
from lightstride.config import PruneConfig
from lightstride.errors import ConfigError, WorkError
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionKept, AttentionShape, FFNKept
from lightstride.prune import heal as room
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite, kept_inputs
from lightstride.prune.heal import Healing, Student, heal, steps_of, take_step
from lightstride.training.checkpoint import TrainingFolder

WINDOWS = torch.randint(0, 256, (12, 24), generator=torch.Generator().manual_seed(3))
QUICK = Healing(passes=4, learning_rate=3e-3, step_tokens=96, save_steps=1)


def cut(dense: PreTrainedModel) -> PreTrainedModel:
    """Half of every FFN and a part of every attention gone; norms are shared."""
    adapter = adapter_for(dense.config)
    sites = DenseSites.of(dense, adapter)
    levels = {}
    for site in sites.geometry.sites:
        shape = sites.geometry.shape(site)
        if isinstance(shape, AttentionShape):
            queries = tuple(range(shape.queries_per_group))
            kept: AttentionKept | FFNKept = AttentionKept((0,), (queries,))
        else:
            kept = FFNKept(tuple(range(0, shape.num_channels, 2)))
        columns = kept_inputs(kept, shape, sites.geometry.head_dim)
        levels[site] = CutSite(kept, sites.weights[site][OUTPUT_NAME[site.kind]][:, columns], 0.0)
    return materialize(dense, adapter, levels)


@torch.no_grad()
def divergence(dense: PreTrainedModel, smaller: PreTrainedModel, tokens_NL: Tensor) -> float:
    """Mean KL(dense | cut) over all positions, from whole logits."""
    said, says = (model(tokens_NL).logits.float().log_softmax(-1) for model in (dense, smaller))
    return float(kl_div(says, said, reduction="none", log_target=True).sum(-1).mean())


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in ones.items())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_cut_model_comes_closer_to_the_dense_one(variant: str, tmp_path: Path) -> None:
    dense = VARIANTS[variant]().to(torch.bfloat16)
    smaller = cut(dense)
    before, untouched = divergence(dense, smaller, WINDOWS), weights(dense)
    progress = heal(smaller, dense, adapter_for(dense.config), WINDOWS, QUICK, tmp_path)
    assert progress.step == 12
    assert divergence(dense, smaller, WINDOWS) < 0.8 * before
    assert same(untouched, weights(dense))
    assert {parameter.dtype for parameter in smaller.parameters()} == {torch.bfloat16}
    head = smaller.get_output_embeddings().weight
    assert torch.equal(head, dense.get_output_embeddings().weight)


def test_the_gradient_is_that_of_whole_logits() -> None:
    dense = tiny_llama(num_layers=2)
    adapter = adapter_for(dense.config)
    student, twin = Student(cut(dense), adapter), cut(dense)
    loss = take_step(student, dense, adapter, WINDOWS)
    said = dense(WINDOWS).logits.detach().log_softmax(-1)
    for block in adapter.blocks(twin):
        block.requires_grad_(True)
    plain = kl_div(twin(WINDOWS).logits.log_softmax(-1), said, reduction="none", log_target=True)
    mean = plain.sum(-1).mean()
    mean.backward()
    assert loss == pytest.approx(mean.item(), rel=1e-4)
    found = {name: p.grad for name, p in student.blocks.named_parameters()}
    for name, parameter in adapter.blocks(twin).named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_every_pass_reads_every_window_once_in_an_order_of_its_own() -> None:
    steps = steps_of(7, 3, Healing(passes=2))
    assert [len(step) for step in steps] == [3, 3, 1] * 2
    first, second = ([n for step in part for n in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert steps == steps_of(7, 3, Healing(passes=2))
    assert steps != steps_of(7, 3, Healing(passes=2, seed=1))


def test_killed_and_resumed_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama(num_layers=2)
    adapter = adapter_for(dense.config)
    whole = cut(dense)
    heal(whole, dense, adapter, WINDOWS, QUICK, tmp_path / "whole")
    calls = 0

    def interrupted(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return take_step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(room, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            heal(cut(dense), dense, adapter, WINDOWS, QUICK, tmp_path / "killed")
    assert (tmp_path / "killed" / "training.safetensors").exists()
    resumed = cut(dense)
    heal(resumed, dense, adapter, WINDOWS, QUICK, tmp_path / "killed")
    assert same(weights(whole), weights(resumed))


def test_prune_heals_and_says_what_it_was_before(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    quick = {"sparsity": (0.5,), "search": "none", "heal": 2, "heal_rate": 1e-3}
    config = config_of(tmp_path, "healed", **quick)
    finish(config)
    finish(config_of(tmp_path, "plain", **{**quick, "heal": 0}))
    healed, plain = (
        json.loads((tmp_path / name / "result.json").read_text())["numbers"]["sizes"][0]
        for name in ("healed", "plain")
    )
    assert healed["unhealed"] == pytest.approx(plain["perplexity"], rel=1e-6)
    assert healed["perplexity"] != pytest.approx(plain["perplexity"], rel=1e-3)
    assert "unhealed" not in plain
    assert not list((tmp_path / "healed.work").glob("healing*"))


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    quick = {"sparsity": (0.5,), "search": "none", "heal": 1, "heal_rate": 1e-3}
    found = []
    for ranks in (1, 2):
        finish(config_of(tmp_path, f"ranks-{ranks}", **quick), ranks)
        result = json.loads((tmp_path / f"ranks-{ranks}" / "result.json").read_text())
        found.append(result["numbers"]["sizes"][0]["perplexity"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(("flag", "value"), [("heal", -1), ("heal_rate", 0.0)])
def test_bad_numbers_are_refused(flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match="--heal"):
        PruneConfig(model="m", output="o", sparsity=(0.5,), **{flag: value})


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    dense = tiny_llama(num_layers=2)
    adapter = adapter_for(dense.config)
    heal(cut(dense), dense, adapter, WINDOWS, QUICK, tmp_path)
    other = Student(cut(tiny_llama(num_layers=3)), adapter)
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(WorkError, match="another training"):
        TrainingFolder(tmp_path).load(other, optimizer)
