"""Cut toys and their dense twins, and how far apart they are."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionKept, AttentionShape, FFNKept
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite, kept_inputs

WINDOWS = torch.randint(0, 256, (12, 24), generator=torch.Generator().manual_seed(3))


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
            kept = FFNKept(tuple(range(0, shape.num_channels, 2)), max(shape.experts, default=0))
        columns = kept_inputs(kept, shape, sites.geometry.head_dim)
        levels[site] = CutSite(kept, sites.weights[site][OUTPUT_NAME[site.kind]][:, columns], 0.0)
    return materialize(dense, adapter, levels)


@torch.no_grad()
def distance(dense: PreTrainedModel, smaller: PreTrainedModel, tokens_NL: Tensor) -> float:
    """Mean KL(dense | cut) over all positions, from whole logits."""
    said, says = (model(tokens_NL).logits.float().log_softmax(-1) for model in (dense, smaller))
    return float(kl_div(says, said, reduction="none", log_target=True).sum(-1).mean())
