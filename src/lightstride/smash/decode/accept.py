"""Speculative sampling: which drafted tokens the base agrees with, and what it says instead.

Token y drawn from q is kept with probability min(1, p(y) / q(y)); at the first refusal the base
says a token from the positive part of p - q, and after a segment kept whole one from p.  Each
token then follows p exactly (Leviathan et al., arXiv 2211.17192).  Greedily: kept while likeliest.

Shapes: B rows, Q drafted tokens of a segment, N pairs of a row and a place in its segment,
V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.generate.sampler import Sampler
from lightstride.generate.sampling import Purpose, residual
from lightstride.smash.decode.chain_drafter import Draft


def check(
    sampler: Sampler, batch: Sequence[Row], draft: Draft, logits_BQV: Tensor
) -> tuple[list[int], list[int]]:
    """How many tokens of each segment stay (at least its first), and the base's next token.

    `logits_BQV[b, i]` are the base's after the first i + 1 tokens of segment b.
    """
    if sampler.settings.is_greedy and not sampler.reads_history:
        return agreement(draft.segments, logits_BQV.argmax(-1).tolist())
    return rejection(sampler, batch, draft, logits_BQV)


def agreement(
    segments: Sequence[Sequence[int]], best: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """The greedy check, given the base's likeliest token after each token."""
    kept = []
    for segment, wanted in zip(segments, best, strict=True):
        pairs = zip(segment[1:], wanted, strict=False)
        kept.append(next((i for i, (a, b) in enumerate(pairs, 1) if a != b), len(segment)))
    return kept, [wanted[count - 1] for wanted, count in zip(best, kept, strict=True)]


def rejection(
    sampler: Sampler, batch: Sequence[Row], draft: Draft, logits_BQV: Tensor
) -> tuple[list[int], list[int]]:
    """The check when sampling, place by place; each step looks at rows still in agreement."""
    kept = [0] * len(batch)
    following = [0] * len(batch)
    alive = list(range(len(batch)))
    place = 0
    while alive:
        rows = [batch[b] for b in alive]
        said = [draft.segments[b][1 : place + 1] for b in alive]
        target_NV = sampler.probabilities(logits_BQV[alive, place], rows, said)
        drafted = [b for b in alive if len(draft.segments[b]) > place + 1]
        source_NV, stays = target_NV, [False] * len(alive)
        if drafted:
            draft_NV = draft.probabilities[place][alive]
            tokens_N = [(*draft.segments[b], 0)[place + 1] for b in alive]
            ratio_N = accept_ratio(target_NV, draft_NV, tokens_N)
            stays_N = sampler.uniforms(rows, said, Purpose.ACCEPT).to(ratio_N) < ratio_N
            was_N = torch.tensor([b in drafted for b in alive], device=target_NV.device)
            stays = (stays_N & was_N).tolist()
            source_NV = torch.where(was_N[:, None], residual(target_NV, draft_NV), target_NV)
        chosen = sampler.draw(source_NV, rows, said, Purpose.TOKEN).tolist()
        for b, token in zip(alive, chosen, strict=True):
            kept[b], following[b] = place + 1, token
        alive = [b for b, stay in zip(alive, stays, strict=True) if stay]
        place += 1
    return kept, following


def accept_ratio(target_NV: Tensor, draft_NV: Tensor, tokens: Sequence[int]) -> Tensor:
    """p(y) / q(y) of the drafted tokens, shape (N,)."""
    index_N1 = torch.tensor(tokens, device=target_NV.device)[:, None]
    return (target_NV.gather(1, index_N1) / draft_NV.gather(1, index_N1))[:, 0]
