"""Drafts on answers that the model was not trained on, all at once.

From drafts at every token, with the true tokens fed, follow the tokens that `lossless` would
emit a step: a step that starts at token i emits 1 + r_i tokens, r_i the length of the draft's
leading run of agreements with the base, and the next step starts behind them.  At one confidence
`trust` goes on while the stop head is sure enough; here it is judged on unmerged text.

Shapes: N drafts, K tokens of a draft, J = K - 1 later places, F features.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, make_batch, pack_documents
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.confidence import Calibration, cumulative
from lightstride.smash.train.features import draft_features
from lightstride.smash.train.loss import first_token_loss, reached_without_error
from lightstride.smash.train.own_cuts import lengths_from_runs, own_lengths
from lightstride.smash.train.teacher_forced import find_starts, predict_drafts, tokens_at

CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95)
GREEDY_SHARE = 0.98
"""An answer is greedy if so many of its tokens are the base's choice."""


@dataclass(frozen=True)
class HeldOutDrafts:
    """Drafts of held-out answers."""

    features_NJF: Tensor
    """Features of each drafted token (`confidence.py`)."""
    agrees_NJ: Tensor
    valid_NJ: Tensor
    sizes: tuple[int, ...]
    """Drafts of each document, in order."""

    def reached(self) -> Tensor:
        """Places that a draft reaches without a mistake."""
        valid_NK = torch.nn.functional.pad(self.valid_NJ, (1, 0), value=True)
        return reached_without_error(valid_NK, self.agrees_NJ)


@contextmanager
def in_dtype(model: SmashBody, dtype: torch.dtype) -> Iterator[None]:
    """Inside this context the model computes in this type; afterwards it is as before."""
    parameters = list(model.parameters())
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    model.retie_head()
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data
        model.retie_head()


def is_greedy(example: Example) -> bool:
    """Whether the answer is, but for noise, the base's greedy one."""
    same = (example.answer_A == example.greedy_A).float().mean()
    return bool(same >= GREEDY_SHARE)


@torch.no_grad()
def collect(
    model: SmashBody, examples: Sequence[Example], *, row_tokens: int, merged: bool, seed: int = 0
) -> HeldOutDrafts:
    """Drafts at every slot of these answers; `merged`: after segments that the model cuts."""
    sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
    order = sorted(range(len(examples)), key=sizes.__getitem__)
    found = []
    for number, plan in enumerate(pack_documents(order, sizes, row_tokens=row_tokens, num_rows=2)):
        batch = make_batch([[examples[d] for d in row] for row in plan], model.device)
        found.append(collect_batch(model, batch, random.Random(f"{seed}:{number}"), merged))
    return HeldOutDrafts(
        torch.cat([each.features_NJF for each in found]),
        torch.cat([each.agrees_NJ for each in found]),
        torch.cat([each.valid_NJ for each in found]),
        tuple(size for each in found for size in each.sizes),
    )


def collect_batch(
    model: SmashBody, batch: Batch, rng: random.Random, merged: bool
) -> HeldOutDrafts:
    """Drafts of one batch."""
    slots = batch.unmerged()
    taps = model.read_packed(slots)
    sizes = [len(document.answer_A) for row in batch.rows for document in row]
    if merged:
        cut = own_lengths(model, batch, slots, taps, rng)
        slots = batch.cut_into(cut)
        taps, sizes = model.read_packed(slots), [len(lengths) for lengths in cut]
    starts = find_starts(slots, batch.documents_BL, model.config.max_segment)
    drafts = predict_drafts(model, taps, starts, tokens_at(batch.tokens_BL, starts))
    drafted_NJ, features_NJF = draft_features(model, batch, drafts)
    agrees_NJ = drafted_NJ == tokens_at(batch.greedy_BL, starts)[:, 1:]
    valid_NJ = starts.valid_NK[:, 1:]
    return HeldOutDrafts(
        features_NJF.cpu(), (agrees_NJ & valid_NJ).cpu(), valid_NJ.cpu(), tuple(sizes)
    )


@torch.no_grad()
def merged_divergence(
    model: SmashBody, examples: Sequence[Example], *, row_tokens: int, seed: int = 0
) -> dict[str, float]:
    """What merging costs these answers, cut as the model cuts them: nats a prediction (KL) from its
    base on the text as it is, over the tokens that the base predicts, and tokens a segment."""
    sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
    total, segments, tokens = 0.0, 0, 0
    plans = pack_documents(range(len(examples)), sizes, row_tokens=row_tokens, num_rows=2)
    for number, plan in enumerate(plans):
        batch = make_batch([[examples[d] for d in row] for row in plan], model.device)
        unmerged = batch.unmerged()
        taps = model.read_packed(unmerged)
        rng = random.Random(f"{seed}:{number}")
        cut = batch.cut_into(own_lengths(model, batch, unmerged, taps, rng))
        starts = find_starts(cut, batch.documents_BL, 1)
        total += float(first_token_loss(model, model, model.read_packed(cut)[-1], starts, taps[-1]))
        segments += len(starts.rows_N)
        tokens += batch.num_answer_tokens
    return {"kl": total / segments, "tokens_per_segment": tokens / segments}


def lossless_tokens_per_step(drafts: HeldOutDrafts) -> float:
    """Tokens a step that `lossless` would emit; drafts must stand at every token."""
    runs_N = 1 + drafts.agrees_NJ.long().cumprod(-1).sum(-1)
    return tokens_per_step(runs_N, drafts.sizes)


def trust_at(
    drafts: HeldOutDrafts, calibration: Calibration | None, confidence: float
) -> dict[str, float]:
    """Tokens a step that this confidence lets through, and the share that the base agrees with."""
    sure_NJ = cumulative(drafts.features_NJF, calibration) >= confidence
    says_NJ = (sure_NJ & drafts.valid_NJ).long().cumprod(-1).bool()
    right = (says_NJ & drafts.agrees_NJ).sum() / says_NJ.sum().clamp(min=1)
    steps = tokens_per_step(1 + says_NJ.sum(-1), drafts.sizes)
    return {"tokens_per_step": steps, "agreement": float(right)}


def tokens_per_step(runs_N: Tensor, sizes: Sequence[int]) -> float:
    """Tokens over steps, when each step is as long as the run at its start."""
    parts = [part.tolist() for part in runs_N.split(list(sizes))]
    return sum(sizes) / sum(len(lengths_from_runs(part)) for part in parts)


def accuracy_by_place(drafts: HeldOutDrafts) -> list[float]:
    """Share of right tokens at each place of a draft that is right until there."""
    counts_NJ = drafts.reached()
    right_J = (counts_NJ & drafts.agrees_NJ).sum(0) / counts_NJ.sum(0).clamp(min=1)
    return [round(value, 4) for value in right_J.tolist()]


def summarize(
    drafts: HeldOutDrafts, calibration: Calibration | None = None, *, trusts: bool
) -> dict[str, object]:
    """Figures of held-out answers, as a training records them; `trusts`: of the mode too."""
    found: dict[str, object] = {
        "lossless": lossless_tokens_per_step(drafts),
        "agreement": accuracy_by_place(drafts),
        "tokens": sum(drafts.sizes),
    }
    if trusts:
        found["trust"] = {f"{c:g}": trust_at(drafts, calibration, c) for c in CONFIDENCES}
    return found
