"""Log-likelihoods of continuations, with every context computed once.

A multiple-choice item asks for log P(choice | question) of several choices after one question.
The question runs once, for many items together; its keys and values are kept, a row of them is
copied for each choice, and the choices run on top.  A choice of one token costs nothing more
than the question.  Logits exist only where a continuation token is predicted.

Rows of a batch are of similar length: contexts padded on the left, continuations on the right,
so that positions in the cache are contiguous and sliding windows see the right tokens.
The plain twin is `HFLM._loglikelihood_tokens` of lm-eval: one full row for each choice.

Shapes: B contexts, R continuations, L length, N tokens, S of a slice, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lightstride.models.sliced_logits import log_totals

Pair = tuple[Sequence[int], Sequence[int]]
SMALLEST_SHARE = 8
"""A batch of 1/8 of the budget is large enough to be run."""
SHORTEST_SHARE = 0.8
"""Items shorter than this share of a batch's longest wait for the next batch."""
CACHE_DISCOUNT = 8
"""So many cached tokens count as one in the size of a batch."""


@dataclass(frozen=True)
class Score:
    """The result of one continuation."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Row:
    """One continuation: where its score goes, and its tokens (at least one)."""

    index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """A context (at least one token) and everything asked after it."""

    context: tuple[int, ...]
    rows: tuple[Row, ...]


def group_by_context(pairs: Sequence[Pair], max_length: int) -> list[Group]:
    """Pairs with the same context together, longest context first.

    Longer texts than `max_length` inputs are cut from the left, as lm-eval does; the last token
    of a continuation is no input.
    """
    groups: dict[tuple[int, ...], list[Row]] = {}
    for index, (context, continuation) in enumerate(pairs):
        assert context
        assert 0 < len(continuation) <= max_length
        room = max_length + 1 - len(continuation)
        groups.setdefault(tuple(context[-room:]), []).append(Row(index, tuple(continuation)))
    longest_first = sorted(groups.items(), key=lambda item: (-len(item[0]), item[0]))
    return [Group(context, tuple(rows)) for context, rows in longest_first]


def batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Cut items, longest first, into runs whose padded size is at most the budget (or one item).

    A run that is worth a batch by itself also ends where items get so short that they would be
    mostly padding.
    """
    start = 0
    while start < len(lengths):
        longest = lengths[start]
        enough = start + max(1, budget // SMALLEST_SHARE // longest)
        stop = min(len(lengths), start + max(1, budget // longest))
        while stop > enough and lengths[stop - 1] < SHORTEST_SHARE * longest:
            stop -= 1
        yield slice(start, stop)
        start = stop


def token_scores(logits_RLV: Tensor, targets_RL: Tensor, real_RL: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's targets in fp32, and whether all are the likeliest: (R,), (R,).

    Among equal logits the first is the likeliest, as argmax says; it is asked only where every
    target of a row is at the top, since it is slow.
    """
    sums_RL, tops_RL = (x.view_as(targets_RL) for x in log_totals(logits_RLV.flatten(0, 1)))
    chosen_RL = logits_RLV.gather(2, targets_RL[..., None])[..., 0].float()
    values_R = (chosen_RL - sums_RL).where(real_RL, 0.0).sum(1)
    greedy_R = ((chosen_RL == tops_RL) | ~real_RL).all(1)
    for row in greedy_R.nonzero()[:, 0].tolist():
        first_L = logits_RLV[row].argmax(1)
        greedy_R[row] = ((first_L == targets_RL[row]) | ~real_RL[row]).all()
    return values_R, greedy_R


def pad(
    rows: Sequence[Sequence[int]], *, left: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids padded with zeros and the mask of real tokens, both (rows, longest) int64."""
    tokens_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask_BL = torch.zeros_like(tokens_BL)
    for i, row in enumerate(rows):
        where = slice(tokens_BL.shape[1] - len(row), None) if left else slice(len(row))
        tokens_BL[i, where] = torch.tensor(row, dtype=torch.long)
        mask_BL[i, where] = 1
    return tokens_BL.to(device), mask_BL.to(device)


def positions(mask_BL: Tensor) -> Tensor:
    """Position of every token among the real ones of its row, (B, L)."""
    return (mask_BL.cumsum(1) - 1).clamp_min(0)


def copy_rows(cache: Cache, rows_R: Tensor) -> Cache:
    """A cache whose rows are copies of these rows of another, which is left as it is."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    copied.batch_select_indices(rows_R)
    return copied


def run_contexts(model: PreTrainedModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Cache]:
    """Logits after each context (B, V), the contexts' mask (B, L), and their keys and values."""
    tokens_BL, mask_BL = pad([g.context for g in groups], left=True, device=model.device)
    # By index: of a slice torch multiplies row by row, each with a copy of the head of its own.
    last_1 = torch.tensor([tokens_BL.shape[1] - 1], device=model.device)
    output = model(
        input_ids=tokens_BL,
        attention_mask=mask_BL,
        position_ids=positions(mask_BL),
        use_cache=True,
        logits_to_keep=last_1,
    )
    return output.logits[:, -1], mask_BL, output.past_key_values


def first_scores(logits_BV: Tensor, groups: Sequence[Group]) -> list[list[tuple[float, bool]]]:
    """Score of the first token of every row, group by group, from the logits after the contexts."""
    sums_B, _ = log_totals(logits_BV)
    greedy = logits_BV.argmax(1).tolist()
    scores = []
    for b, group in enumerate(groups):
        firsts = [row.tokens[0] for row in group.rows]
        values = (logits_BV[b, firsts].float() - sums_B[b]).tolist()
        scores.append(
            [(value, first == greedy[b]) for value, first in zip(values, firsts, strict=True)]
        )
    return scores


def rest_scores(
    model: PreTrainedModel, cache: Cache, context_mask_BL: Tensor, rows: Sequence[tuple[int, Row]]
) -> list[tuple[float, bool]]:
    """Score of all but the first token of these rows; each comes with its context's place."""
    device = model.device
    places_R = torch.tensor([b for b, _ in rows], device=device)
    inputs_RL, mask_RL = pad([row.tokens[:-1] for _, row in rows], left=False, device=device)
    targets_RL, _ = pad([row.tokens[1:] for _, row in rows], left=False, device=device)
    mask = torch.cat([context_mask_BL[places_R], mask_RL], dim=1)
    logits_RLV = model(
        input_ids=inputs_RL,
        attention_mask=mask,
        position_ids=positions(mask)[:, -inputs_RL.shape[1] :],
        past_key_values=copy_rows(cache, places_R),
        use_cache=True,
    ).logits
    values_R, greedy_R = token_scores(logits_RLV, targets_RL, mask_RL.bool())
    return list(zip(values_R.tolist(), greedy_R.tolist(), strict=True))


def score_groups(
    model: PreTrainedModel, groups: Sequence[Group], batch_tokens: int
) -> dict[int, Score]:
    """Score of every row of these groups, whose contexts run as one batch, by the row's index."""
    logits_BV, mask_BL, cache = run_contexts(model, groups)
    scores: dict[int, Score] = {}
    longer: list[tuple[int, Row]] = []
    for b, (group, firsts) in enumerate(zip(groups, first_scores(logits_BV, groups), strict=True)):
        for row, first in zip(group.rows, firsts, strict=True):
            scores[row.index] = Score(*first)
            if len(row.tokens) > 1:
                longer.append((b, row))
    longer.sort(key=lambda place: -len(place[1].tokens))
    share = mask_BL.shape[1] // CACHE_DISCOUNT
    for part in batches([len(row.tokens) + share for _, row in longer], batch_tokens):
        rows = longer[part]
        for (_, row), rest in zip(rows, rest_scores(model, cache, mask_BL, rows), strict=True):
            first_score = scores[row.index]
            scores[row.index] = Score(
                first_score.log_likelihood + rest[0], first_score.is_greedy and rest[1]
            )
    return scores


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    batch_tokens: int = 2048,
    done: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Score of every (context, continuation) pair of token ids, in the order given.

    `batch_tokens` bounds the padded size of a batch; `done` is told how many pairs were finished.
    """
    scores: dict[int, Score] = {}
    groups = group_by_context(pairs, max_length)
    for batch in batches([len(group.context) for group in groups], batch_tokens):
        scores |= (finished := score_groups(model, groups[batch], batch_tokens))
        done(len(finished))
    return [scores[index] for index in range(len(pairs))]
