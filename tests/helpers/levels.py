"""For tests of cuts: one level of a site, with experts or without."""

import torch
from torch import Tensor

from lightstride.models.shapes import FFNShape, Shape
from lightstride.prune.cut.expert_cuts import ExpertSettings, prune_experts
from lightstride.prune.cut.refit import CutSite, prune_site


def experts_in(dense: Shape) -> tuple[int, ...]:
    """Widths of a dense site's experts."""
    return dense.experts if isinstance(dense, FFNShape) else ()


def own_blocks(whole: Tensor, dense: Shape) -> Tensor:
    """Of the products of all inputs those that are summed: each expert's own, if there are some."""
    experts = experts_in(dense)
    if not experts:
        return whole
    size = experts[0]
    parts = [slice(start, start + size) for start in range(0, len(whole), size)]
    return torch.stack([whole[part, part] for part in parts])


def one_level(weight_OI: Tensor, gram: Tensor, shape: Shape, dense: Shape) -> CutSite:
    """A site cut to a shape, experts as if they had been sent many tokens."""
    experts = experts_in(dense)
    if not experts:
        return prune_site(weight_OI, gram, [shape], dense)[0]
    assert isinstance(shape, FFNShape)
    assert isinstance(dense, FFNShape)
    sent_E = torch.full((len(experts),), 1e6)
    settings = ExpertSettings(experts_per_token=2, step=1)
    return prune_experts(weight_OI, gram, sent_E, [shape], dense, settings)[0]
