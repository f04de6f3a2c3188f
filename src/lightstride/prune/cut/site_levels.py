"""All levels of one site, from its statistics.

Where a drift was measured, output weights are fitted to what undoes a part of it (`statistics.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.shapes import FFNShape, Geometry, Shape, Site
from lightstride.prune.cut.expert_cuts import (
    ExpertSettings,
    prune_experts,
    targets_of_experts,
    with_missing_tokens,
)
from lightstride.prune.cut.refit import CutSite, prune_site, weights_for_targets
from lightstride.prune.cut.statistics import SiteStatistics


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """How sites are cut."""

    correction: float
    """Part of the drift that each site undoes."""
    damping: float
    channel_step: int = 1
    """Widths of experts are multiples of this."""
    dtype: torch.dtype = torch.float32
    """Type of refitted weights, where it saves memory to have it at once."""


def site_levels(
    site: Site,
    statistics: SiteStatistics,
    shapes: Sequence[Shape],
    geometry: Geometry,
    settings: CutSettings,
) -> list[CutSite]:
    """A site cut to all these shapes, in their order."""
    weight_OI = statistics.weights[OUTPUT_NAME[site.kind]].to(statistics.gram.device).float()
    if statistics.tokens_E is not None:
        widths = [shape for shape in shapes if isinstance(shape, FFNShape)]
        dense = geometry.ffn[site.block]
        own = ExpertSettings(
            experts_per_token=geometry.experts_per_token,
            step=settings.channel_step,
            damping=settings.damping,
        )
        gram_EWW = with_missing_tokens(statistics.gram, statistics.tokens_E)
        weight_OI = expert_targets(weight_OI, gram_EWW, statistics.drift_IO, settings)
        return prune_experts(weight_OI, gram_EWW, statistics.tokens_E, widths, dense, own)
    gram_II = statistics.gram
    if statistics.drift_IO is not None:
        cross_IO = torch.addmm(statistics.drift_IO, gram_II, weight_OI.T, beta=settings.correction)
        weight_OI = weights_for_targets(weight_OI, gram_II, cross_IO, damping=settings.damping)
    return prune_site(
        weight_OI,
        gram_II,
        shapes,
        geometry.shape(site),
        damping=settings.damping,
        dtype=settings.dtype,
    )


def expert_targets(
    weight_OI: Tensor, gram_EWW: Tensor, drift_IO: Tensor | None, settings: CutSettings
) -> Tensor:
    """The weights that experts are fitted to."""
    if drift_IO is None:
        return weight_OI
    return targets_of_experts(
        weight_OI,
        gram_EWW,
        drift_IO,
        correction=settings.correction,
        damping=settings.damping,
    )
