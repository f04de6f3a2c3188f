"""Models with experts from a folder of transformers to one that transformers opens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

from helpers.cuts import logits
from helpers.expert_toys import published_qwen3_moe
from helpers.prune_runs import config_of, make_inputs
from helpers.toys import byte_tokenizer
from lightstride.commands.prune import prune
from lightstride.commands.pruning import count
from lightstride.commands.pruning.expert_tokens import ExpertCounts
from lightstride.config import PruneConfig
from lightstride.errors import ConfigError
from lightstride.models.shapes import FFNKept, parse_kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model with experts and a text."""
    place = tmp_path_factory.mktemp("experts")
    make_inputs(place)
    published_qwen3_moe(num_experts=6, num_channels=16).save_pretrained(place / "experts")
    byte_tokenizer().save_pretrained(place / "experts")
    return place


def run_of(folder: Path, name: str, **changes: object) -> PruneConfig:
    values = {"sparsity": (0.4,), "target": "any", "model": str(folder / "experts"), "multiple": 4}
    return config_of(folder, name, **{**values, **changes})


def chosen_by(own: nn.Module, gone: list[int]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A router of transformers that never chooses some experts."""

    def choose(rows_TD: Tensor) -> tuple[Tensor, ...]:
        logits_TE = nn.functional.linear(rows_TD, own.weight)
        logits_TE[:, gone] = -torch.inf
        shares, chosen = logits_TE.softmax(-1).topk(own.top_k, dim=-1)
        return logits_TE, shares / shares.sum(-1, keepdim=True), chosen

    return choose


@torch.no_grad()
def mask_experts(dense: Qwen3MoeForCausalLM, cut: nn.Module, index: int, kept: FFNKept) -> None:
    """Give a dense layer the cut one's output weights, with zeros for channels that went."""
    ffn, size = dense.model.layers[index].mlp, kept.expert_width
    down_DC = torch.zeros(dense.config.hidden_size, size * ffn.gate.num_experts)
    down_DC[:, list(kept.channels)] = cut.get_parameter(f"model.layers.{index}.mlp.down.weight")
    ffn.experts.down_proj.copy_(down_DC.unflatten(1, (-1, size)).transpose(0, 1))
    gone = sorted(set(range(ffn.gate.num_experts)) - set(kept.widths))
    ffn.gate.forward = chosen_by(ffn.gate, gone)


def test_whole_and_streamed_end_as_the_masked_twin_with_fewer_experts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = prune(run_of(folder, "whole", calibration_tokens=2048))
    assert "experts were sent fewer" not in capsys.readouterr().err
    [size] = numbers["numbers"]["sizes"]  # type: ignore[index]
    assert size["sparsity"] == pytest.approx(0.4, abs=0.02)
    assert size["sparsity"] >= 0.4
    assert size["experts"]["dense"] == 12
    assert size["experts"]["few"] == 0
    cut = AutoModelForCausalLM.from_pretrained(folder / "whole", trust_remote_code=True)
    plan = json.loads((folder / "whole" / "lightstride.json").read_text("utf-8"))["plan"]
    dense = Qwen3MoeForCausalLM.from_pretrained(folder / "experts")
    for index in range(3):
        assert plan["shapes"][f"{index}.attention"] == "2x2"
    left = 0
    for index in (1, 2):
        kept = parse_kept(plan["kept"][f"{index}.ffn"])
        assert isinstance(kept, FFNKept)
        left += len(kept.widths)
        assert cut.model.layers[index].mlp.widths == tuple(kept.widths.values())
        mask_experts(dense, cut, index, kept)
    assert size["experts"]["left"] == left < 12, "no expert went: the test shows little"
    plain = parse_kept(plan["kept"]["0.ffn"])
    assert isinstance(plain, FFNKept)
    with torch.no_grad():
        down_DC = torch.zeros_like(dense.model.layers[0].mlp.down_proj.weight)
        down_DC[:, list(plain.channels)] = cut.model.layers[0].mlp.down_proj.weight
        dense.model.layers[0].mlp.down_proj.weight.copy_(down_DC)
    torch.testing.assert_close(logits(cut), logits(dense), atol=1e-4, rtol=0)

    monkeypatch.setattr("lightstride.commands.pruning.setup.way_of", lambda _: "streamed")
    prune(run_of(folder, "streamed", calibration_tokens=2048))
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "streamed")]
    assert weights[0] == weights[1]


def test_too_little_text_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"calibration_tokens": 32, "search_tokens": 32, "search": "none"}
    numbers = prune(run_of(folder, "few", **few))
    [size] = numbers["numbers"]["sizes"]  # type: ignore[index]
    assert size["experts"]["few"] > 0
    line = f"{size['experts']['few']} of 12 experts were sent fewer calibration tokens"
    assert line in capsys.readouterr().err


def test_what_is_enough_is_not_said() -> None:
    assert ExpertCounts(dense=12, left=12, few=0, fewest=40, width=16).sentence() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": "uniform"}, "--target uniform cannot have them"),
        ({"target": "gguf", "multiple": 32}, "no file for llama.cpp is written of qwen3_moe"),
        ({"budget": "latency"}, "cannot time experts"),
    ],
)
def test_what_experts_cannot_have_is_refused(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        count.count_run(run_of(folder, "refused", **changes).resolved())


def test_experts_that_were_cut_are_not_cut_again(folder: Path) -> None:
    prune(run_of(folder, "once", search="none"))
    with pytest.raises(ConfigError, match="experts of the model differ in width"):
        count.count_run(run_of(folder, "twice", model=str(folder / "once")).resolved())
