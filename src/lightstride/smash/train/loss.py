"""The loss of one packed batch.

One forward of the base over the text as it is gives both what is to be learned and the features
of drafts at every token; it needs no gradient while the base is frozen.  Where merging is to be
learned too, as published, the answers are cut into segments, by rules or by the model's own drafts,
and read once more: the base's own distributions must survive the merging.

The whole loss, of which L are sums over answer tokens:

    L_later + w_stop L_stop                                 drafts on unmerged text
      + w_keep L_keep                                       where the base learns: its own tokens
      + n/m (L'_later + w_stop L'_stop + w_first L_first)   in merged batches: drafts after merged
                                                            histories, and the first tokens there

L_later weighs place k of a draft by d^(k-1), normed to 1 over the places; L_stop, which has as many
terms a draft as there are places, is divided by their number, so that both count once a token.  The
m slots of a merged batch count as much as its n answer tokens.  A slot's merged column predicts the
next slot's first token by the base's head, which L_first is, and its further tokens by the micro
decoder, which L'_later is; drafts learn from merged columns but do not shape them.
Reported are all but L'_later and L'_stop: they measure the same grafts on harder histories.

The teacher's vector for token x_l is the base's last hidden state of the unmerged text before it
(`training/losses.py`).  The stop head after token k learns, given that the draft was right so far,
by binary cross entropy to "token k + 1 of the draft is not the base's greedy choice".  We differ
from HAMburger (arXiv 2505.20438): soft targets, and agreement in place of the segments' ends.

Shapes: B rows, L tokens, S slots, N drafts, K tokens of a draft, T taps, D hidden size, J pairs of
a draft and a later place.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lightstride.smash.data.packing import Batch, draw_cut
from lightstride.smash.model.body import IGNORED, SmashBody
from lightstride.smash.model.slots import SlotBatch
from lightstride.smash.train.hidden_cache import HiddenStateCache
from lightstride.smash.train.own_cuts import feed_own, own_lengths
from lightstride.smash.train.teacher_forced import (
    Drafts,
    Starts,
    find_starts,
    predict_drafts,
    tokens_at,
)
from lightstride.training.losses import Loss, divergence
from lightstride.training.lowered import call_lowered

Stats = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses, and shares of what is drawn at random."""

    loss: Loss = "kl"
    """Target of the base's distribution: all of it, or its likeliest token."""
    place_decay: float = 0.85
    """Each further place of a draft counts this much of the one before."""
    stop_weight: float = 0.2
    """Weight of the stop head's loss."""
    first_weight: float = 1.0
    """Weight of first tokens after merged histories."""
    keep_weight: float = 1.0
    """Weight of the base's own distributions on unmerged text, where the base learns too."""
    feed_own_share: float = 0.0
    """Share of tokens inside a draft that are fed as the model itself would draft them."""
    short_share: float = 0.0
    """Share of readings that only teach the first later places, one or two: most drafts come no
    further, and a place costs as much as another."""


class LoweredSmashLoss(nn.Module):
    """A smashed model that answers with its loss; weights of fp32 are computed with in bf16."""

    def __init__(
        self,
        model: SmashBody,
        learning: LossWeights,
        dtype: torch.dtype,
        teacher: SmashBody | None = None,
        memory: HiddenStateCache | None = None,
    ) -> None:
        super().__init__()
        self.inner = SmashLoss(model, learning, teacher, memory)
        self.dtype = dtype

    def forward(self, batch: Batch, merges: bool, own_cuts: bool, seed: str) -> Stats:
        """Sums of losses ("loss" is to be minimized) and of what else is worth knowing."""
        moved: dict[str, Tensor] = {}
        if self.inner.trains_base:  # the micro head is a copy of rows that have moved
            rows = self.inner.model.head_rows()
            moved = {f"model.{name}": each.to(self.dtype) for name, each in rows.items()}
        found = call_lowered(self.inner, self.dtype, batch, merges, own_cuts, seed, others=moved)
        return cast(Stats, found)

    def base_weights(self) -> list[nn.Parameter]:
        """Those of the weights that are the base's."""
        return list(self.inner.model.base.parameters())


class SmashLoss(nn.Module):
    """The loss itself, with weights as they are."""

    def __init__(
        self,
        model: SmashBody,
        learning: LossWeights,
        teacher: SmashBody | None,
        memory: HiddenStateCache | None,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.model = model
        self.learning = learning
        self.teacher = [teacher or model]  # in a list: its weights are not this module's

    def forward(self, batch: Batch, merges: bool, own_cuts: bool, seed: str) -> Stats:
        """See `LoweredSmashLoss.forward`."""
        rng = random.Random(seed)
        unmerged = batch.unmerged()
        taps, teacher_BLD = self.read_unmerged(batch, unmerged)
        stats = self.drafts_loss(batch, unmerged, taps, teacher_BLD, rng)
        loss = stats["later"] + self.learning.stop_weight * stats["stop"]
        if self.trains_base:
            starts = find_starts(unmerged, batch.documents_BL, 1)
            stats["keep"] = self.first_token_loss(taps[-1], starts, teacher_BLD)
            loss = loss + self.learning.keep_weight * stats["keep"]
        if merges:
            cut = batch.cut_into(self.cut(batch, unmerged, taps, rng, own=own_cuts))
            found = self.merged_losses(batch, cut, teacher_BLD, rng)
            part = found["later"] + self.learning.stop_weight * found["stop"]
            part = part + self.learning.first_weight * found["first"]
            loss = loss + part * (batch.num_answer_tokens / found["firsts"].clamp(min=1))
            stats |= {name: found[name] for name in ("first", "firsts")}
        detached = {name: value.detach() for name, value in stats.items()}
        return {**detached, "loss": loss}

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights learn."""
        return any(parameter.requires_grad for parameter in self.model.base.parameters())

    def read_unmerged(self, batch: Batch, unmerged: SlotBatch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Hidden states of the unmerged text, and the teacher's last, (B, L, D)."""
        if self.trains_base:
            with torch.no_grad():
                teacher_BLD = self.teacher[0].read_packed(unmerged)[-1]
            return self.model.read_packed(unmerged), teacher_BLD
        if self.memory is not None:
            taps = self.memory.states(batch)
            return taps, taps[-1]
        with torch.no_grad():
            taps = self.model.read_packed(unmerged)
        return taps, taps[-1]

    def cut(
        self,
        batch: Batch,
        unmerged: SlotBatch,
        taps: Sequence[Tensor],
        rng: random.Random,
        *,
        own: bool,
    ) -> list[list[int]]:
        """Segment lengths of all answers: the model's own, or by rules."""
        config = self.model.config
        if own:
            return own_lengths(self.model, batch, unmerged, taps, rng)
        return [
            draw_cut(document, rng, max_segment=config.max_segment, vocab_size=config.vocab_size)
            for row in batch.rows
            for document in row
        ]

    def drafts_loss(
        self,
        batch: Batch,
        slots: SlotBatch,
        taps: Sequence[Tensor],
        teacher_BLD: Tensor,
        rng: random.Random,
    ) -> Stats:
        """Losses of later tokens and of the stop head, for drafts from every slot."""
        model, learning = self.model, self.learning
        num_tokens = tokens_of_drafts(model.config.max_segment, learning.short_share, rng)
        starts = find_starts(slots, batch.documents_BL, num_tokens)
        fed_NK = tokens_at(batch.tokens_BL, starts)
        if learning.feed_own_share:
            fed_NK = feed_own(model, taps, starts, fed_NK, rng, learning.feed_own_share)
        drafts = predict_drafts(model, taps, starts, fed_NK)
        found = draft_loss(model, drafts, batch, teacher_BLD, learning)
        return {"later": found.loss, "stop": stop_loss(model, drafts, found.agrees_NJ)}

    def merged_losses(
        self, batch: Batch, cut: SlotBatch, teacher_BLD: Tensor, rng: random.Random
    ) -> Stats:
        """Losses of drafts after merged histories, of the first tokens there, and their number."""
        merged = self.model.read_packed(cut)
        starts = find_starts(cut, batch.documents_BL, 1)
        drafted_from = [hidden.detach() for hidden in merged]
        return {
            **self.drafts_loss(batch, cut, drafted_from, teacher_BLD, rng),
            "first": self.first_token_loss(merged[-1], starts, teacher_BLD),
            "firsts": torch.tensor(float(len(starts.rows_N)), device=teacher_BLD.device),
        }

    def first_token_loss(self, hidden_BSD: Tensor, starts: Starts, teacher_BLD: Tensor) -> Tensor:
        """Loss of first tokens against the base's on unmerged text."""
        teacher, kind = self.teacher[0], self.learning.loss
        return first_token_loss(self.model, teacher, hidden_BSD, starts, teacher_BLD, kind)


def first_token_loss(
    model: SmashBody,
    teacher: SmashBody,
    hidden_BSD: Tensor,
    starts: Starts,
    teacher_BLD: Tensor,
    kind: Loss = "kl",
) -> Tensor:
    """Loss of first tokens, by the base's head, against the teacher's on unmerged text."""
    student_ND = hidden_BSD[starts.rows_N, starts.slots_N]
    total, _ = divergence(
        model.base_logits,
        student_ND,
        teacher_BLD[starts.rows_N, starts.ends_N],
        torch.ones(len(student_ND), device=student_ND.device),
        kind=kind,
        parameters=tuple(model.get_output_embeddings().parameters()),
        teacher_head=teacher.base_logits,
    )
    return total


@dataclass(frozen=True)
class DraftLoss:
    """Drafts beside the base's own choices."""

    loss: Tensor
    agrees_NJ: Tensor
    """Whether each later token is the base's greedy choice; False where there is none."""


def draft_loss(
    model: SmashBody, drafts: Drafts, batch: Batch, teacher_BLD: Tensor, learning: LossWeights
) -> DraftLoss:
    """The loss of later tokens, weighted by place, and where the drafts are right.

    A place counts for its loss only where the base's choice is one that micro steps can draft.
    """
    starts = drafts.starts
    draft_J, place_J = drafts.pairs()
    greedy_NK = tokens_at(batch.greedy_BL, starts)
    greedy_J = greedy_NK[draft_J, place_J]
    num_later = starts.valid_NK.shape[1] - 1
    agrees_NJ = torch.zeros_like(starts.valid_NK[:, 1:])
    if not num_later:
        return DraftLoss(drafts.vectors_NKD.sum() * 0, agrees_NJ)
    num_places = model.config.max_segment - 1
    weights_K = place_weights(num_places, learning.place_decay).to(draft_J.device)
    draftable_J = model.micro_ids(greedy_J) != IGNORED
    total, drafted_J = divergence(
        model.micro_logits,
        drafts.vectors_NKD[draft_J, place_J],
        teacher_BLD[starts.rows_N[draft_J], starts.ends_N[draft_J] + place_J],
        weights_K[place_J - 1] * draftable_J,
        kind=learning.loss,
    )
    agrees_NJ[draft_J, place_J - 1] = model.vocabulary_ids(drafted_J) == greedy_J
    return DraftLoss(total, agrees_NJ)


def stop_loss(model: SmashBody, drafts: Drafts, agrees_NJ: Tensor) -> Tensor:
    """Cross entropy of "the next token of the draft is wrong", while it was right so far."""
    counts_NJ = reached_without_error(drafts.starts.valid_NK, agrees_NJ)
    num_later = agrees_NJ.shape[1]
    logits_M = model.stop_logits(drafts.vectors_NKD[:, :num_later][counts_NJ]).float()
    wrong_M = (~agrees_NJ[counts_NJ]).float()
    total = binary_cross_entropy_with_logits(logits_M, wrong_M, reduction="sum")
    return total / max(1, model.config.max_segment - 1)


def tokens_of_drafts(max_segment: int, short_share: float, rng: random.Random) -> int:
    """Tokens of the drafts of one reading: now and then two or three, else all."""
    is_short = rng.random() < short_share
    return min(max_segment, rng.choice((2, 3))) if is_short else max_segment


def reached_without_error(valid_NK: Tensor, agrees_NJ: Tensor) -> Tensor:
    """Later places that are there and that a draft reaches without a mistake, (N, K - 1)."""
    before_NJ = torch.nn.functional.pad(agrees_NJ[:, :-1].long(), (1, 0), value=1)
    return valid_NK[:, 1:] & before_NJ.cumprod(-1).bool()


def place_weights(num_later: int, decay: float) -> Tensor:
    """Weight of each place of a draft after the first, summing to 1, shape (K - 1,)."""
    weights = decay ** torch.arange(num_later, dtype=torch.float32)
    return weights / weights.sum()
