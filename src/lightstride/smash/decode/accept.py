"""Speculative sampling: which drafted tokens the base agrees with, and its own next token.

Token y drawn from q is kept with probability min(1, p(y) / q(y)); at the first refusal the base
draws from the positive part of p - q, and after a segment kept whole from p.  Each token then
follows p exactly (Leviathan et al., arXiv 2211.17192).  Greedily: kept while likeliest.

Shapes: N pairs of a row and a place in its segment, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.generate.batch.forward import Logits
from lightstride.generate.rows import Row
from lightstride.generate.sampling import (
    Purpose,
    draw_tokens,
    likeliest,
    probabilities,
    residual,
    row_uniforms,
)
from lightstride.smash.drafters.guesses import Guesses


def accept(
    rows: Sequence[Row], drafts: Sequence[Guesses], logits: Logits
) -> tuple[list[int], list[int]]:
    """Number of drafted tokens of each row that stay, and the base's next token.

    Logits of a row's column k are the base's after the certain token and the first k drafted ones.
    """
    best_N = likeliest(logits.flat_NV).tolist()
    best = [
        best_N[start : start + 1 + len(draft.tokens)]
        for start, draft in zip(logits.starts, drafts, strict=True)
    ]
    counts, following = greedy_acceptance([draft.tokens for draft in drafts], best)
    others = [index for index, row in enumerate(rows) if not row.is_plain]
    if others:
        theirs = [rows[index] for index in others]
        own = Logits(logits.flat_NV, [logits.starts[index] for index in others])
        sampled = accept_sampled(theirs, [drafts[index] for index in others], own)
        for index, count, token in zip(others, *sampled, strict=True):
            counts[index], following[index] = count, token
    return counts, following


def greedy_acceptance(
    drafts: Sequence[Sequence[int]], best: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """The greedy check, given the base's likeliest token after each token."""
    counts = []
    for drafted, wanted in zip(drafts, best, strict=True):
        pairs = zip(drafted, wanted, strict=False)
        counts.append(next((i for i, (a, b) in enumerate(pairs) if a != b), len(drafted)))
    return counts, [wanted[count] for wanted, count in zip(best, counts, strict=True)]


def accept_sampled(
    rows: Sequence[Row], drafts: Sequence[Guesses], logits: Logits
) -> tuple[list[int], list[int]]:
    """The check when sampling, place by place; each step looks at rows still in agreement."""
    counts, following = [0] * len(rows), [0] * len(rows)
    alive = list(range(len(rows)))
    place = 0
    while alive:
        theirs = [rows[b] for b in alive]
        history = [drafts[b].tokens[:place] for b in alive]
        target_NV = probabilities(logits.at(alive, [place] * len(alive)), theirs, history)
        there = [place < len(drafts[b].guesses) for b in alive]
        source_NV, stays = target_NV, [False] * len(alive)
        if any(there):
            there_N = torch.tensor(there, device=target_NV.device)
            tokens = [
                drafts[b].tokens[place] if t else 0 for b, t in zip(alive, there, strict=True)
            ]
            draft_NV = torch.stack(
                [
                    drawn_from(drafts[b], place, target_V) if is_there else target_V
                    for b, is_there, target_V in zip(alive, there, target_NV, strict=True)
                ]
            )
            ratio_N = accept_ratio(target_NV, draft_NV, tokens)
            stays_N = row_uniforms(theirs, history, Purpose.ACCEPT).to(ratio_N) < ratio_N
            stays = (stays_N & there_N).tolist()
            source_NV = torch.where(there_N[:, None], residual(target_NV, draft_NV), target_NV)
        chosen = draw_tokens(source_NV, theirs, history, Purpose.TOKEN)
        for b, token in zip(alive, chosen, strict=True):
            counts[b], following[b] = place, token
        alive = [b for b, stay in zip(alive, stays, strict=True) if stay]
        place += 1
    return counts, following


def drawn_from(draft: Guesses, place: int, like_V: Tensor) -> Tensor:
    """Distribution that a drafted token was drawn from, shape (V,); a certain one: itself alone."""
    known_V = draft.drawn_from[place] if place < len(draft.drawn_from) else None
    if known_V is not None:
        return known_V.to(like_V)
    certain_V = torch.zeros_like(like_V)
    certain_V[draft.tokens[place]] = 1
    return certain_V


def accept_ratio(target_NV: Tensor, draft_NV: Tensor, tokens: Sequence[int]) -> Tensor:
    """p(y) / q(y) of the drafted tokens, shape (N,)."""
    index_N1 = torch.tensor(tokens, device=target_NV.device)[:, None]
    return (target_NV.gather(1, index_N1) / draft_NV.gather(1, index_N1))[:, 0]
