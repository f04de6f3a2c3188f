"""Decoders whose FFNs have several experts of different widths, and a router that chooses.

The widths are `expert_widths` of a layer's config: one number for every expert that is there, in
the order of the router's rows.  transformers keeps experts in tensors of three dimensions, all of
one width; here the rows and columns of all experts stand one expert after the other:

    gate_proj, up_proj (C, D)    down (D, C)    with C the channels of all experts together

so a layer with experts is a layer without whose channels most tokens leave out.

This file is copied into checkpoints beside `modeling.py`, which it needs.

Shapes: B batch, L length, T = B * L tokens, D hidden size, E experts, K experts that a token is
sent to, C channels of all experts, W channels of one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, cast

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, initialization
from transformers.activations import ACT2FN
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

from lightstride.models.uneven.modeling import LayeredCausalLM, LayeredConfig, LayeredModel


@dataclass(frozen=True)
class Routed:
    """Inputs of the experts' output weights: zero but for the tokens that an expert was given."""

    num_tokens: int
    tokens: tuple[Tensor, ...]
    """By expert, the tokens that it was given."""
    values: tuple[Tensor, ...]
    """By expert, its channels (T', W) for these tokens, times their share in its answer."""

    def whole(self) -> Tensor:
        """The same with all zeros, shape (T, C)."""
        parts = [
            values.new_zeros(self.num_tokens, values.shape[1]).index_copy(0, tokens, values)
            for tokens, values in zip(self.tokens, self.values, strict=True)
        ]
        return torch.cat(parts, dim=1)


class Router(nn.Module):
    """Chooses the experts of every token, and their shares in the answer.

    A bias is for masked twins: minus infinity for experts that are gone elsewhere.
    """

    bias: nn.Parameter | None

    def __init__(self, config: PreTrainedConfig, num_experts: int) -> None:
        super().__init__()
        self.top_k, self.normalizes = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        self.register_parameter("bias", None)

    def forward(self, rows_TD: Tensor) -> tuple[Tensor, Tensor]:
        logits_TE = functional.linear(rows_TD, self.weight, self.bias)
        shares_TE = functional.softmax(logits_TE, dtype=torch.float, dim=-1)
        shares_TK, chosen_TK = shares_TE.topk(self.top_k, dim=-1)
        if self.normalizes:
            shares_TK = shares_TK / shares_TK.sum(dim=-1, keepdim=True)
        return shares_TK.to(rows_TD.dtype), chosen_TK


class Inner(nn.Module):
    """Gate and up weights of all experts."""

    def __init__(self, config: PreTrainedConfig, num_channels: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_channels, config.hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_channels, config.hidden_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, rows_TD: Tensor, shares_TK: Tensor, chosen_TK: Tensor, widths: tuple[int, ...]
    ) -> Routed:
        order = chosen_TK.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_TK.flatten(), minlength=len(widths)).tolist()
        sent = order.split(counts)
        tokens = tuple(each // chosen_TK.shape[1] for each in sent)
        values = []
        for mine, own, part in zip(tokens, sent, parts_of(widths), strict=True):
            given_TD, shares_T = rows_TD[mine], shares_TK.flatten()[own]
            gate_TW = self.act_fn(functional.linear(given_TD, self.gate_proj[part]))
            up_TW = functional.linear(given_TD, self.up_proj[part])
            values.append(gate_TW * up_TW * shares_T[:, None])
        return Routed(len(rows_TD), tokens, tuple(values))


class Down(nn.Module):
    """Output weights of all experts."""

    def __init__(self, config: PreTrainedConfig, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, num_channels))

    def forward(self, routed: Routed) -> Tensor:
        answer_TD = self.weight.new_zeros(routed.num_tokens, self.weight.shape[0])
        parts = parts_of(tuple(values.shape[1] for values in routed.values))
        for tokens, values, part in zip(routed.tokens, routed.values, parts, strict=True):
            answer_TD = answer_TD.index_add(
                0, tokens, functional.linear(values, self.weight[:, part])
            )
        return answer_TD


class ExpertFFN(nn.Module):
    """A router and experts, each as wide as `widths` says."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.widths = widths_of(config)
        self.gate = Router(config, len(self.widths))
        self.inner = Inner(config, sum(self.widths))
        self.down = Down(config, sum(self.widths))

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows_TD = hidden_states.flatten(0, -2)
        shares_TK, chosen_TK = self.gate(rows_TD)
        if torch.compiler.is_compiling():
            return self.by_all(rows_TD, shares_TK, chosen_TK).view_as(hidden_states)
        answer_TD: Tensor = self.down(self.inner(rows_TD, shares_TK, chosen_TK, self.widths))
        return answer_TD.view_as(hidden_states)

    def by_all(self, rows_TD: Tensor, shares_TK: Tensor, chosen_TK: Tensor) -> Tensor:
        """The same, every expert on every token: a graph cannot depend on who is sent where."""
        shares_TE = shares_TK.new_zeros(len(rows_TD), len(self.widths))
        shares_TE = shares_TE.scatter(1, chosen_TK, shares_TK)
        columns = zip(shares_TE.split(1, dim=1), self.widths, strict=True)
        shares_TC = torch.cat([share.expand(-1, width) for share, width in columns], dim=1)
        gate_TC = self.inner.act_fn(functional.linear(rows_TD, self.inner.gate_proj))
        values_TC = gate_TC * functional.linear(rows_TD, self.inner.up_proj) * shares_TC
        return functional.linear(values_TC, self.down.weight)


def parts_of(widths: tuple[int, ...]) -> list[slice]:
    """Every expert's channels among those of all."""
    ends = list(accumulate(widths, initial=0))
    return [slice(start, stop) for start, stop in pairwise(ends)]


def widths_of(layer: PreTrainedConfig) -> tuple[int, ...]:
    """The width of every expert of a layer with this config."""
    own = getattr(layer, "expert_widths", None)
    return tuple(own or [layer.moe_intermediate_size] * layer.num_experts)


def has_experts(layer: PreTrainedConfig, index: int) -> bool:
    """Whether a layer of this number and config has experts, and not one plain FFN."""
    is_one = (index + 1) % layer.decoder_sparse_step == 0 and layer.num_experts > 0
    return is_one and index not in (layer.mlp_only_layers or ())


def check_experts(config: PreTrainedConfig) -> None:
    """Raise ValueError unless every layer has as many experts as a token is sent to, each wide."""
    for index in range(config.num_hidden_layers):
        layer = config.per_layer_config[index]
        widths, wanted = widths_of(layer), layer.num_experts_per_tok
        if has_experts(layer, index) and (len(widths) < wanted or min(widths) < 1):
            raise ValueError(
                f"layer {index} has experts of the widths {list(widths)}, and a token is sent to "
                f"{wanted} of them"
            )


class ExpertWeights:
    """Part of the models: random weights for what transformers does not know."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, Router | Inner | Down):
            config: Any = cast(Any, self).config
            for parameter in module.parameters(recurse=False):
                initialization.normal_(parameter, mean=0.0, std=config.initializer_range)


@strict
class LayeredQwen3MoeConfig(LayeredConfig, transformers.Qwen3MoeConfig):
    """Config of a Qwen3 with experts whose widths differ."""

    model_type: ClassVar[str] = "lightstride_qwen3_moe"
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        name: style
        for name, style in transformers.Qwen3MoeConfig.base_model_tp_plan.items()
        if ".mlp." not in name
    }
    """Experts of different widths are not shared out."""
    base_model_ep_plan: ClassVar[dict[str, Sequence[list[str]]]] = {}
    expert_widths: list[int] | None = None
    """Channels of every expert; without it all have `moe_intermediate_size`."""

    def validate_architecture(self) -> None:
        """Check heads and experts of all layers."""
        super().validate_architecture()
        check_experts(self)


class LayeredQwen3MoeDecoderLayer(Qwen3MoeDecoderLayer):
    """A layer whose experts are ours; those of transformers are not built."""

    def __init__(self, config: transformers.Qwen3MoeConfig, layer_idx: int) -> None:
        bare = copy.copy(config)
        if has_experts(config, layer_idx):
            bare.mlp_only_layers, bare.intermediate_size = [layer_idx], 1
        super().__init__(bare, layer_idx)
        if has_experts(config, layer_idx):
            self.mlp = ExpertFFN(config)  # type: ignore[assignment]


class LayeredQwen3MoeModel(ExpertWeights, LayeredModel, transformers.Qwen3MoeModel):
    """A Qwen3 with experts whose widths differ, without its head."""

    config_class = LayeredQwen3MoeConfig
    block_class = LayeredQwen3MoeDecoderLayer
    _can_compile_fullgraph = False


class LayeredQwen3MoeForCausalLM(ExpertWeights, LayeredCausalLM, transformers.Qwen3MoeForCausalLM):
    """A Qwen3 with experts whose widths differ.

    It is called like a Qwen3 without: losses of routers are for experts that are alike.
    """

    forward = transformers.Qwen3ForCausalLM.forward
    config_class = LayeredQwen3MoeConfig
    model_class = LayeredQwen3MoeModel
    _can_compile_fullgraph = False
