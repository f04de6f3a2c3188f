"""A better start than random: micro layers that begin as the base's last whole block.

Weights travel under the adapter's canonical names.  The block's two norms over the hidden size
are taken where it has exactly two (pre-norm families); otherwise they stay at one.

Shapes: D hidden size.
"""

import torch
from torch import Tensor, nn

from lightstride.models.families.registry import adapter_for
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.config import last_whole_block
from lightstride.smash.model.modules import MicroLayer


def initialize_from_base(model: SmashBody) -> None:
    """Copy the base's last whole block into every micro layer, and its final norm.

    A block whose attention was pruned away has nothing to start a micro layer's from.
    """
    adapter = adapter_for(model.base.config)
    last = last_whole_block(adapter.geometry(model.base.config))
    block = adapter.blocks(model.base)[last]
    attention = adapter.read(block, "attention")
    ffn = adapter.read(block, "ffn")
    norms = hidden_norms(block, model.config.hidden_size)
    decoder = adapter.decoder(model.base)
    finals = [norm for norm in decoder.children() if is_norm(norm, model.config.hidden_size)]
    with torch.no_grad():
        for layer in model.micro.layers:
            assert isinstance(layer, MicroLayer)
            for name in ("query", "key", "value", "output"):
                copy(getattr(layer.attention, name).weight, attention[name])
            for name in ("gate", "up", "down"):
                if name in ffn:
                    copy(getattr(layer, name).weight, ffn[name])
            if len(norms) == 2:
                copy(layer.attention_norm.weight, norms[0])
                copy(layer.ffn_norm.weight, norms[1])
        if len(finals) == 1 and isinstance(model.micro.norm, nn.RMSNorm):
            copy(model.micro.norm.weight, norm_scale(finals[0]))


def copy(target: Tensor, source: Tensor) -> None:
    """Take over values where the sizes agree; a base of other sizes leaves the start random."""
    if target.shape == source.shape:
        target.copy_(source)


def hidden_norms(block: nn.Module, hidden_size: int) -> list[Tensor]:
    """Scales of the norms over the hidden size inside a block, in the order of their use."""
    return [norm_scale(m) for m in block.modules() if is_norm(m, hidden_size)]


def is_norm(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module is an RMS norm over the hidden size (it has one vector and no more)."""
    shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
    return not list(module.children()) and shapes == [torch.Size([hidden_size])]


def norm_scale(norm: nn.Module) -> Tensor:
    """The factor of the norm, found by asking it: some families store the scale less one."""
    weight_D = next(norm.parameters())
    ones_D = torch.ones_like(weight_D)
    with torch.no_grad():
        scaled = norm(ones_D)
    assert isinstance(scaled, Tensor)
    return scaled
