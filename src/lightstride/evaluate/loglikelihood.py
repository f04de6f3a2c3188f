"""Log-likelihoods of continuations, with every context computed once.

A multiple-choice item asks for log P(choice | question) of several choices after one question.
The question runs once, for many items together; its keys and values are kept, a row of them is
copied for each choice, and the choices run on top.  A choice of one token costs nothing more
than the question.  Logits exist only where a continuation token is predicted.

Rows of a batch are of similar length: contexts padded on the left, continuations on the right,
so that positions in the cache are contiguous and sliding windows see the right tokens.
The plain twin is `HFLM._loglikelihood_tokens` of lm-eval: one full row for each choice.

A model in memory runs batch after batch.  One that is read block by block takes all batches, of as
many tasks as were asked together, past each block before it needs the next: the same rows in the
same batches, so the same scores.

Shapes: B contexts, R continuations, L length, N tokens, S of a slice, P positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.block_calls import logits_at
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Piece, Spill, copy_rows, passed
from lightstride.models.sliced_logits import log_totals, slice_rows

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


def pad(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids padded with zeros and the mask of real tokens, both (rows, longest) int64."""
    tokens_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask_BL = torch.zeros_like(tokens_BL)
    for i, row in enumerate(rows):
        where = slice(tokens_BL.shape[1] - len(row), None) if left else slice(len(row))
        tokens_BL[i, where] = torch.tensor(row, dtype=torch.long)
        mask_BL[i, where] = 1
    return tokens_BL, mask_BL


def arguments(tokens_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
    """What a decoder is called with, its tokens being the last of those that are masked."""
    positions_BL = (mask_BL.cumsum(1) - 1).clamp_min(0)[:, -tokens_BL.shape[1] :]
    return {"input_ids": tokens_BL, "attention_mask": mask_BL, "position_ids": positions_BL}


@dataclass(frozen=True)
class Part:
    """All but the first token of continuations that run together, after their contexts."""

    rows: tuple[Row, ...]
    places: tuple[int, ...]
    """Their contexts' places in the batch."""

    def piece(self, context_mask_BL: Tensor) -> Piece:
        """What is run: the tokens that a further one follows."""
        inputs_RL, mask_RL = pad([row.tokens[:-1] for row in self.rows], left=False)
        starts_R = torch.tensor(self.places)
        mask = torch.cat([context_mask_BL[starts_R], mask_RL], dim=1)
        return Piece(arguments(inputs_RL, mask), starts_R)

    def targets(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens that follow, and which are real, both (R, L)."""
        targets_RL, mask_RL = pad([row.tokens[1:] for row in self.rows], left=False)
        return targets_RL.to(device), mask_RL.bool().to(device)


@dataclass(frozen=True)
class ContextBatch:
    """Contexts that run together, and what runs after them."""

    groups: Sequence[Group]
    parts: Sequence[Part]

    @cached_property
    def pieces(self) -> list[Piece]:
        """The contexts, and then every part."""
        tokens_BL, mask_BL = pad([group.context for group in self.groups], left=True)
        contexts = Piece(arguments(tokens_BL, mask_BL), goes_on=bool(self.parts))
        return [contexts, *(part.piece(mask_BL) for part in self.parts)]


def planned(pairs: Sequence[Pair], max_length: int, batch_tokens: int) -> list[ContextBatch]:
    """All batches, of at most so many tokens with what pads them (or of one context)."""
    groups = group_by_context(pairs, max_length)
    return [
        ContextBatch(groups[some], parts_of(groups[some], batch_tokens))
        for some in batches([len(group.context) for group in groups], batch_tokens)
    ]


def parts_of(groups: Sequence[Group], batch_tokens: int) -> list[Part]:
    """Continuations of more than one token, in runs."""
    longer = [(b, row) for b, group in enumerate(groups) for row in group.rows]
    longer = [(b, row) for b, row in longer if len(row.tokens) > 1]
    longer.sort(key=lambda place: -len(place[1].tokens))
    share = max(len(group.context) for group in groups) // CACHE_DISCOUNT
    parts = []
    for some in batches([len(row.tokens) + share for _, row in longer], batch_tokens):
        places, rows = zip(*longer[some], strict=True)
        parts.append(Part(rows, places))
    return parts


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


@dataclass(frozen=True)
class Answer:
    """What a model says to a batch."""

    firsts: Sequence[Sequence[tuple[float, bool]]]
    """Of the first token of every row, group by group."""
    rests: Sequence[tuple[Tensor, Tensor]]
    """Of all other tokens, part by part: log-likelihood and greediness, (R,) and (R,)."""


def whole_answers(model: PreTrainedModel, batches: Sequence[ContextBatch]) -> Iterator[Answer]:
    """Of a model in memory, batch after batch."""
    device = model.device
    for batch in batches:
        contexts, *others = batch.pieces
        # By index: of a slice torch multiplies row by row, each with a copy of the head of its own.
        last_1 = torch.tensor([contexts.tokens.shape[1] - 1], device=device)
        output = model(**contexts.on(device), use_cache=True, logits_to_keep=last_1)
        cache, rests = output.past_key_values, []
        for part, piece in zip(batch.parts, others, strict=True):
            assert piece.starts_R is not None
            before = copy_rows(cache, piece.starts_R.to(device))
            logits_RLV = model(**piece.on(device), past_key_values=before, use_cache=True).logits
            rests.append(token_scores(logits_RLV, *part.targets(device)))
        yield Answer(first_scores(output.logits[:, -1], batch.groups), rests)


def passed_answers(
    source: WeightSource, batches: Sequence[ContextBatch], spill: Spill | None, title: str
) -> Iterator[Answer]:
    """Of a model that is read block by block: all batches pass a block before it is given back."""
    pieces = [piece for batch in batches for piece in batch.pieces]
    number = 0
    with passed(source, pieces, spill, title=title) as states:
        for batch in batches:
            firsts = passed_firsts(source, batch, states[number])
            rests = [
                passed_rest(source, part, pieces[place], states[place])
                for place, part in enumerate(batch.parts, start=number + 1)
            ]
            yield Answer(firsts, rests)
            number += len(batch.pieces)


def passed_firsts(
    source: WeightSource, batch: ContextBatch, hidden_BLD: Tensor
) -> list[list[tuple[float, bool]]]:
    """Scores of first tokens, from what the last block answered to the contexts."""
    tokens_BL = batch.pieces[0].tokens.to(source.device)
    last_1 = torch.tensor([tokens_BL.shape[1] - 1], device=source.device)
    most, scores = slice_rows(source.model, source.device), list[list[tuple[float, bool]]]()
    for logits_B1V in logits_at(source.model, source.adapter, tokens_BL, hidden_BLD, last_1, most):
        groups = batch.groups[len(scores) : len(scores) + len(logits_B1V)]
        scores += first_scores(logits_B1V[:, -1], groups)
    return scores


def passed_rest(
    source: WeightSource, part: Part, piece: Piece, hidden_RLD: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of a part's other tokens: so many rows, or positions of one, as a slice has."""
    device, most = source.device, slice_rows(source.model, source.device)
    tokens_RL, (targets_RL, real_RL) = piece.tokens.to(device), part.targets(device)
    positions_L = torch.arange(tokens_RL.shape[1], device=device)
    values, greedy = [], []
    for rows in torch.arange(len(tokens_RL), device=device).split(max(1, most // len(positions_L))):
        total_R, all_R = torch.zeros(len(rows), device=device), torch.tensor(True, device=device)
        slices = logits_at(
            source.model, source.adapter, tokens_RL[rows], hidden_RLD[rows], positions_L, most
        )
        for where, logits_RPV in zip(positions_L.split(most), slices, strict=True):
            targets, real = (each[rows][:, where] for each in (targets_RL, real_RL))
            value_R, greedy_R = token_scores(logits_RPV, targets, real)
            total_R, all_R = total_R + value_R, all_R & greedy_R
        values.append(total_R)
        greedy.append(all_R)
    return torch.cat(values), torch.cat(greedy)


def batch_scores(batch: ContextBatch, answer: Answer) -> dict[int, Score]:
    """Score of every row of a batch, by the row's index."""
    scores = {
        row.index: Score(*first)
        for group, firsts in zip(batch.groups, answer.firsts, strict=True)
        for row, first in zip(group.rows, firsts, strict=True)
    }
    for part, (values_R, greedy_R) in zip(batch.parts, answer.rests, strict=True):
        rest = zip(part.rows, values_R.tolist(), greedy_R.tolist(), strict=True)
        for row, value, is_greedy in rest:
            first = scores[row.index]
            whole = (first.log_likelihood + value, first.is_greedy and is_greedy)
            scores[row.index] = Score(*whole)
    return scores


@torch.inference_mode()
def score(
    model: PreTrainedModel | WeightSource,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    batch_tokens: int = 2048,
    spill: Spill | None = None,
    done: Callable[[int], object] = lambda count: None,
    title: str = "",
) -> list[Score]:
    """Score of every (context, continuation) pair of token ids, in the order given.

    `batch_tokens` bounds the padded size of a batch; `done` is told how many pairs were finished.
    Of a model that is read block by block, hidden states of all pairs lie in memory or where
    `spill` says, and a bar with this title counts blocks.
    """
    scores: dict[int, Score] = {}
    plan = planned(pairs, max_length, batch_tokens)
    if isinstance(model, WeightSource):
        answers = passed_answers(model, plan, spill, title)
    else:
        answers = whole_answers(model, plan)
    for batch, answer in zip(plan, answers, strict=True):
        scores |= (finished := batch_scores(batch, answer))
        done(len(finished))
    return [scores[index] for index in range(len(pairs))]
