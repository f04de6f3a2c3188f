"""What this machine does a second, measured in a few seconds on the model at hand.

The products are those that a run will do: a block on a batch of windows, the Gram matrix of
one batch of FFN inputs, and the pruning of a site that is as wide as the FFN, up to a bound.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.families.adapter import Adapter
from lightstride.models.shapes import FFNShape, Site
from lightstride.prune.cut.gram import add_gram
from lightstride.prune.cut.refit import prune_ffn
from lightstride.prune.cut.stream import recorders
from lightstride.prune.estimate import GRAM_SHARE, Rates, inputs, solve_operations
from lightstride.prune.space.latency import best_time

MOST_CHANNELS = 1024
"""Widest site that is pruned for the measurement."""
GRAM_TOKENS = 4096


def measure_rates(model: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor) -> Rates:
    """Operations a second, for batches like this one."""
    return Rates(
        forward=forward_rate(model, adapter, tokens_BL),
        gram=gram_rate(model, adapter),
        solve=solve_rate(model, adapter),
    )


@torch.inference_mode()
def forward_rate(model: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor) -> float:
    """Rate of one block on one batch."""
    tokens_BL = tokens_BL.to(model.device)
    geometry = adapter.geometry(model.config)
    block = adapter.blocks(model)[0]
    with recorders(model, adapter) as stand_ins:
        adapter.decoder(model)(tokens_BL, use_cache=False)
    first = stand_ins[0]
    seconds = best_time(
        lambda: block(first.hidden_BLD, *first.call.args, **first.call.kwargs), 2, model.device
    )
    sites = [Site(0, "attention"), Site(0, "ffn")]
    weights = sum(geometry.parameters(geometry.shape(site)) for site in sites)
    return 2.0 * weights * tokens_BL.numel() / seconds


def gram_rate(model: PreTrainedModel, adapter: Adapter) -> float:
    """Rate of a Gram matrix of FFN inputs."""
    geometry = adapter.geometry(model.config)
    width = inputs(geometry, geometry.ffn[0])
    rows_TI = torch.randn(GRAM_TOKENS, width, dtype=model.dtype, device=model.device)
    gram_II = torch.zeros(width, width, device=model.device)
    seconds = best_time(lambda: add_gram(gram_II, rows_TI), 2, model.device)
    return 2 * GRAM_SHARE * width**2 * GRAM_TOKENS / seconds


def solve_rate(model: PreTrainedModel, adapter: Adapter) -> float:
    """Rate of pruning an FFN to eight widths."""
    geometry = adapter.geometry(model.config)
    width = min(inputs(geometry, geometry.ffn[0]), MOST_CHANNELS)
    rows_TI = torch.randn(2 * width, width, device=model.device)
    weight_OI = torch.randn(geometry.hidden_size, width, device=model.device)
    gram_II = rows_TI.T @ rows_TI
    shapes = [FFNShape(max(1, width * eighth // 8)) for eighth in range(1, 9)]
    seconds = best_time(lambda: prune_ffn(weight_OI, gram_II, shapes), 1, model.device)
    widths = [shape.num_channels for shape in shapes]
    return solve_operations(width, widths, geometry.hidden_size, nested=True) / seconds
