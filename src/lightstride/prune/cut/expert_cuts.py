"""Cut the experts of an FFN to a number of channels together, each to a width of its own.

Every expert has a Gram matrix H_e over the tokens that were sent to it and is cut like an FFN
(`refit.py`): one removal order, and at every width w the loss L_e(w) of its refitted output
weights; L_e(0) is the loss of the whole expert.  The widths of a level are those with the least sum

    min sum_e L_e(w_e)    with    sum_e w_e = the level's channels,    w_e multiples of a step

found exactly, expert by expert over all totals.  An expert of width 0 goes with its row of the
router.  Its tokens are then sent to others, which the losses do not know: statistics of the sites
that follow, and the search, see it.

As many experts stay as a token is sent to.  An expert that was sent fewer tokens than it has
channels is not known well: the missing ones are added as tokens of independent channels, of the
mean square that channels of the site have, so that it is cut by the size of its weights; and it
keeps a step while there is room for that.

Ours: the publication (arXiv 2503.09657) knows no experts.

Shapes: O outputs, E experts, W channels of each dense one, U steps of an expert, N steps of a
level, K experts that a token is sent to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.models.shapes import FFNKept, FFNShape
from lightstride.prune.cut.refit import CutSite, NestedCuts, dense_level, weights_for_targets


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """How experts are cut."""

    experts_per_token: int
    step: int
    """Widths of experts are multiples of this."""
    damping: float = 0.01
    chunk: int = 16
    """Channels that are removed at once."""


def with_missing_tokens(gram_EWW: Tensor, tokens_E: Tensor) -> Tensor:
    """The Gram matrices, as if each expert had been sent at least as many tokens as it is wide."""
    width = gram_EWW.shape[1]
    diagonals_EW = gram_EWW.diagonal(dim1=1, dim2=2)
    square = diagonals_EW.double().sum() / (width * tokens_E.sum().clamp(min=1))
    missing_E = (width - tokens_E).clamp(min=0) * square
    return gram_EWW + torch.diag_embed(missing_E[:, None].expand(-1, width)).to(gram_EWW)


def targets_of_experts(
    weight_OI: Tensor, gram_EWW: Tensor, drift_IO: Tensor, *, correction: float, damping: float
) -> Tensor:
    """Dense weights that undo a part of the drift, each expert's for itself, shape (O, I)."""
    width = gram_EWW.shape[1]
    parts = []
    for weight_OW, gram_WW, drift_WO in zip(
        weight_OI.split(width, 1), gram_EWW, drift_IO.split(width), strict=True
    ):
        cross_WO = gram_WW @ weight_OW.T + correction * drift_WO
        parts.append(weights_for_targets(weight_OW, gram_WW, cross_WO, damping=damping))
    return torch.cat(parts, 1)


def prune_experts(
    weight_OI: Tensor,
    gram_EWW: Tensor,
    tokens_E: Tensor,
    shapes: Sequence[FFNShape],
    dense: FFNShape,
    settings: ExpertSettings,
) -> list[CutSite]:
    """One level for each number of channels, in the order given.

    The Gram matrices come from `with_missing_tokens`.
    """
    num_experts, width, step = len(gram_EWW), gram_EWW.shape[1], settings.step
    assert width % step == 0
    weights = weight_OI.split(width, 1)

    def cuts_of(expert: int) -> NestedCuts:
        gram_WW, gone = gram_EWW[expert], width - step
        return NestedCuts(weights[expert], gram_WW, gone, settings.damping, settings.chunk)

    losses_EU = torch.stack(
        [
            torch.tensor([cuts.loss(each) for each in range(0, width + 1, step)])
            for cuts in map(cuts_of, range(num_experts))
        ]
    )
    few_E = (tokens_E < width).to(losses_EU.device)
    chosen = [
        cheapest_widths(losses_EU, few_E, settings.experts_per_token, shape.num_channels // step)
        for shape in shapes
    ]
    parts: list[list[CutSite]] = [[] for _ in shapes]
    for expert in range(num_experts):
        cuts = cuts_of(expert)
        found = {number[expert]: cuts.level(number[expert] * step) for number in chosen}
        for number, level in zip(chosen, parts, strict=True):
            level.append(found[number[expert]])
    return [
        dense_level(weight_OI, dense) if shape == dense else side_by_side(level, width)
        for shape, level in zip(shapes, parts, strict=True)
    ]


def side_by_side(levels: Sequence[CutSite], width: int) -> CutSite:
    """A level of all experts from one of each."""
    channels = []
    for expert, level in enumerate(levels):
        assert isinstance(level.kept, FFNKept)
        channels += [expert * width + channel for channel in level.kept.channels]
    output_OK = torch.cat([level.output_OK for level in levels], 1)
    return CutSite(FFNKept(tuple(channels), width), output_OK, sum(each.loss for each in levels))


def cheapest_widths(
    losses_EU: Tensor, few_E: Tensor, experts_per_token: int, num_steps: int
) -> list[int]:
    """Steps of every expert, `num_steps` together, with the least sum of losses (E, 0 to U)."""
    least_E = least_steps(losses_EU[:, 0], few_E, experts_per_token, num_steps)
    best_N = losses_EU.new_full((num_steps + 1,), torch.inf)
    best_N[0] = 0.0
    taken = []
    for losses_U, least in zip(losses_EU, least_E.tolist(), strict=True):
        ways_UN = losses_EU.new_full((len(losses_U), num_steps + 1), torch.inf)
        for steps in range(least, min(len(losses_U), num_steps + 1)):
            ways_UN[steps, steps:] = best_N[: num_steps + 1 - steps] + losses_U[steps]
        best_N, ways_N = ways_UN.min(0)
        taken.append(ways_N)
    assert best_N[num_steps].isfinite(), "no way to share out so many channels"
    left, widths = num_steps, []
    for ways_N in reversed(taken):
        widths.append(int(ways_N[left]))
        left -= widths[-1]
    return widths[::-1]


def least_steps(whole_E: Tensor, few_E: Tensor, experts_per_token: int, num_steps: int) -> Tensor:
    """1 for experts that stay, the dearest ones and those of few tokens, as far as steps go."""
    by_loss = whole_E.argsort(descending=True, stable=True).tolist()
    first, rest = by_loss[:experts_per_token], by_loss[experts_per_token:]
    staying = [*first, *(expert for expert in rest if few_E[expert])][:num_steps]
    least_E = torch.zeros(len(whole_E), dtype=torch.long)
    least_E[staying] = 1
    return least_E
