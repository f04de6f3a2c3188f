"""Experts of different widths: those of transformers where alike, else its masked twin."""

import pytest
import torch
from torch import Tensor, nn

from helpers.cuts import cached_logits, cut_block, logits, tokens
from helpers.expert_toys import published_qwen3_moe, tiny_qwen3_moe
from helpers.toys import byte_tokenizer
from lightstride.checkpoint import EXPERTS_NAME, MODELING_NAME, save_checkpoint
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model
from lightstride.models.rebuild import rebuilt
from lightstride.models.uneven.experts import (
    ExpertFFN,
    LayeredQwen3MoeConfig,
    LayeredQwen3MoeForCausalLM,
)


def ffn_of(model: nn.Module, index: int) -> ExpertFFN:
    ffn = model.get_submodule(f"model.layers.{index}.mlp")
    assert isinstance(ffn, ExpertFFN)
    return ffn


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("plain_layers", [(), (0,), (1, 2)])
def test_opened_it_computes_what_transformers_does(normalizes, plain_layers, tmp_path):
    published = published_qwen3_moe(normalizes=normalizes, plain_layers=plain_layers)
    published.save_pretrained(tmp_path)
    opened = load_model(str(tmp_path))
    assert type(opened) is LayeredQwen3MoeForCausalLM
    count = sum(parameter.numel() for parameter in published.parameters())
    assert sum(parameter.numel() for parameter in opened.parameters()) == count
    torch.testing.assert_close(logits(opened), logits(published), atol=1e-5, rtol=0)
    torch.testing.assert_close(cached_logits(opened), logits(published), atol=1e-5, rtol=0)


def test_losses_and_gradients_are_those_of_transformers():
    published = published_qwen3_moe()
    opened = rebuilt(published)
    for model in (published, opened):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model(tokens(), labels=tokens()).loss.backward()
    theirs = published.model.layers[1].mlp.experts.gate_up_proj.grad
    ours = torch.cat([ffn_of(opened, 1).inner.gate_proj.grad, ffn_of(opened, 1).inner.up_proj.grad])
    expected = torch.cat([half.flatten(0, 1) for half in theirs.chunk(2, 1)])
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def zeroed_twin(published: nn.Module, index: int, kept: list[list[int]]) -> None:
    """In transformers' own layer: channels that go answer nothing, empty experts are no choice."""
    ffn = published.get_submodule(f"model.layers.{index}.mlp")
    gone = [expert for expert, channels in enumerate(kept) if not channels]
    with torch.no_grad():
        for expert, channels in enumerate(kept):
            zeros = torch.ones(ffn.experts.down_proj.shape[2], dtype=torch.bool)
            zeros[channels] = False
            ffn.experts.down_proj[expert][:, zeros] = 0
    own = ffn.gate

    def choose(rows_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = nn.functional.linear(rows_TD, own.weight)
        logits_TE[:, gone] = -torch.inf
        shares, chosen = logits_TE.softmax(-1).topk(own.top_k, dim=-1)
        return logits_TE, shares / shares.sum(-1, keepdim=True), chosen

    own.forward = choose


def test_a_cut_model_is_transformers_own_with_zeros(tmp_path):
    published = published_qwen3_moe()
    model = rebuilt(published)
    before = logits(published)
    cut_block(model, 1, ("ffn",))
    assert ffn_of(model, 1).widths == (12, 6, 5)
    zeroed_twin(published, 1, [list(range(0, 24, step)) if step else [] for step in (2, 0, 4, 5)])
    assert (logits(published) - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(model), logits(published), atol=1e-5, rtol=0)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    assert {MODELING_NAME, EXPERTS_NAME} <= {path.name for path in (tmp_path / "new").iterdir()}
    read = load_model(str(tmp_path / "new"))
    assert ffn_of(read, 1).widths == (12, 6, 5)
    assert torch.equal(logits(read), logits(model))


def test_inputs_of_output_weights_are_zero_for_tokens_that_went_elsewhere():
    ffn = ffn_of(tiny_qwen3_moe(), 1)
    caught = []
    ffn.down.register_forward_pre_hook(lambda _, args: caught.append(args[0].whole()))
    hidden_BLD = torch.randn(2, 7, 32)
    with torch.no_grad():
        answer_BLD = ffn(hidden_BLD)
        again_TD = nn.functional.linear(caught[0], ffn.down.weight)
    assert caught[0].shape == (14, 96)
    busy_TE = caught[0].unflatten(1, (4, 24)).any(2)
    assert (busy_TE.sum(1) == 2).all()
    torch.testing.assert_close(again_TD, answer_BLD.flatten(0, 1), atol=1e-5, rtol=0)


def test_a_compiled_layer_is_one_graph_and_answers_alike():
    model = tiny_qwen3_moe()
    cut_block(model, 1, ("ffn",))
    ffn, hidden_BLD = ffn_of(model, 1), torch.randn(2, 7, 32)
    with torch.no_grad():
        expected = ffn(hidden_BLD)
        compiled = torch.compile(ffn, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(hidden_BLD), expected, atol=1e-5, rtol=0)


def test_a_random_model_has_random_experts():
    config = tiny_qwen3_moe().config
    torch.manual_seed(0)
    model = LayeredQwen3MoeForCausalLM(config)
    for weight in (ffn_of(model, 1).gate.weight, ffn_of(model, 1).down.weight):
        assert float(weight.detach().std()) == pytest.approx(config.initializer_range, rel=0.3)


def test_experts_are_not_shared_out_among_devices():
    plan = LayeredQwen3MoeConfig.base_model_tp_plan
    assert plan["layers.*.self_attn.o_proj"] == "rowwise"
    assert not any(".mlp." in name for name in plan)


@pytest.mark.parametrize("widths", [[8], [8, 0, 8]])
def test_experts_that_cannot_be_chosen_from_are_refused(widths):
    model = tiny_qwen3_moe()
    settings = {**model.config.to_dict(), "per_layer_config": {1: {"expert_widths": widths}}}
    with pytest.raises(Exception, match="layer 1 has experts of the widths"):
        LayeredQwen3MoeConfig(**settings)


def test_a_model_with_experts_is_saved_in_our_layout_only(tmp_path):
    model = tiny_qwen3_moe()
    save_checkpoint(model, byte_tokenizer(), tmp_path / "new")
    read = load_model(str(tmp_path / "new"))
    assert torch.equal(logits(read), logits(model))
    geometry = adapter_for(read.config).geometry(read.config)
    assert geometry.ffn[1].experts == (24, 24, 24, 24)
    assert not geometry.ffn[0].experts
