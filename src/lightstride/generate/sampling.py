"""From logits to tokens, by each row's own settings, history and random numbers.

The order of the filters is that of transformers: repetition penalty (Keskar et al., 2019,
arXiv 1909.05858: a logit l of a seen token becomes l / c if positive, else l * c), temperature,
top-k, top-p, min-p.  A draw inverts the cumulative distribution at one uniform number, which is
a hash of (row key, index of the token in the answer): no state, so a row draws the same alone, in a
batch, or after a rejected draft.

Shapes: N rows, K places of one row, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.errors import ModelError
from lightstride.generate.rows import Row
from lightstride.generate.session import TokenLogprob

NEAR = {
    torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.float32: 64 * torch.finfo(torch.float32).eps,
    torch.float64: 64 * torch.finfo(torch.float64).eps,
}
"""Lead of the likeliest logit, as a share of it, that rounding may turn round: more of it in
precisions that add up in themselves."""

Drafts = Sequence[Sequence[int]]
"""For every row, tokens of the current step that are not in its answer yet."""


def row_key(seed: int, prompt: Sequence[int], copy: int) -> bytes:
    """Identity of a row for its draws: seed, prompt, and which copy of that prompt it is."""
    text = f"{seed}:{copy}:" + ",".join(map(str, prompt))
    return hashlib.sha256(text.encode()).digest()


def uniform(key: bytes, index: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.blake2b(index.to_bytes(9, "little"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def penalize(logits_NV: Tensor, seen_NV: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens made smaller."""
    penalized_NV = torch.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty)
    return torch.where(seen_NV, penalized_NV, logits_NV)


def distribution(logits_NV: Tensor, settings: Settings) -> Tensor:
    """Probabilities to sample from, in float64, each row summing to 1; greedy: all on one token."""
    if settings.is_greedy:
        best_N1 = logits_NV.argmax(-1, keepdim=True)
        return torch.zeros_like(logits_NV, dtype=torch.float64).scatter_(-1, best_N1, 1)
    scores_NV = logits_NV.double() / settings.temperature
    if 0 < settings.top_k < scores_NV.shape[-1]:
        smallest_N1 = scores_NV.topk(settings.top_k, dim=-1).values[:, -1:]
        scores_NV = scores_NV.masked_fill(scores_NV < smallest_N1, -torch.inf)
    if settings.top_p < 1:
        scores_NV = nucleus(scores_NV, settings.top_p)
    probabilities_NV = scores_NV.softmax(-1)
    if settings.min_p > 0:
        least_N1 = settings.min_p * probabilities_NV.amax(-1, keepdim=True)
        probabilities_NV = probabilities_NV.masked_fill(probabilities_NV < least_N1, 0)
        probabilities_NV = probabilities_NV / probabilities_NV.sum(-1, keepdim=True)
    return probabilities_NV


def nucleus(scores_NV: Tensor, top_p: float) -> Tensor:
    """Scores with all but the fewest likeliest that hold `top_p` set to -inf; one always stays."""
    ascending_NV, order_NV = scores_NV.sort(dim=-1)
    outside_NV = ascending_NV.softmax(-1).cumsum(-1) <= 1 - top_p
    outside_NV[:, -1] = False
    return scores_NV.masked_fill(outside_NV.scatter(-1, order_NV, outside_NV), -torch.inf)


def draw(probabilities_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """One token a row: the first whose cumulative probability exceeds the uniform number."""
    cumulative_NV = probabilities_NV.cumsum(-1)
    target_N1 = uniforms_N[:, None] * cumulative_NV[:, -1:]
    tokens_N = torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0]
    last_N = probabilities_NV.shape[-1] - 1 - (probabilities_NV.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(tokens_N, last_N)


def adjusted_logits(logits_NV: Tensor, rows: Sequence[Row], drafts: Drafts) -> Tensor:
    """Logits after everything that reads history: the penalty and the rows' own processors."""
    if not any(row.reads_history for row in rows):
        return logits_NV
    adjusted = []
    for logits_V, row, draft in zip(logits_NV, rows, drafts, strict=True):
        penalty, processor = row.settings.repetition_penalty, row.hooks.processor
        changed_V = logits_V
        if penalty != 1:
            seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
            seen_V[[*row.prompt, *row.tokens, *draft]] = True
            changed_V = penalize(changed_V, seen_V, penalty)
        if processor is not None:
            changed_V = processor([*row.tokens, *draft], changed_V)
        adjusted.append(changed_V)
    return torch.stack([each_V.float() for each_V in adjusted])


def distributions(logits_NV: Tensor, rows: Sequence[Row]) -> Tensor:
    """Distribution of each row's next token, given adjusted logits, shape (N, V)."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, row in enumerate(rows):
        asked = row.settings
        key = (asked.temperature, asked.top_k, asked.top_p, asked.min_p)
        groups.setdefault(key, []).append(index)
    if len(groups) == 1:
        return distribution(logits_NV, rows[0].settings)
    found_NV = torch.empty_like(logits_NV, dtype=torch.float64)
    for members in groups.values():
        found_NV[members] = distribution(logits_NV[members], rows[members[0]].settings)
    return found_NV


def probabilities(logits_NV: Tensor, rows: Sequence[Row], drafts: Drafts) -> Tensor:
    """Distribution of each row's next token, shape (N, V); greedy: all on the likeliest."""
    return distributions(adjusted_logits(logits_NV, rows, drafts), rows)


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token of each row of logits of any shape, one dimension less.

    On a CPU by NumPy: in bfloat16 torch's own takes 8.5 ms for 48 rows of 49,152, this 0.05.  Bits
    of bfloat16 numbers order as the numbers do where the largest is positive.
    """
    if logits.device.type != "cpu" or logits.requires_grad:
        return logits.argmax(-1)
    if logits.dtype == torch.bfloat16:
        best = torch.from_numpy(
            logits.contiguous().view(torch.int16).numpy().argmax(-1, keepdims=True)
        )
        if bool((logits.gather(-1, best) > 0).all()):
            return best[..., 0]
        return logits.argmax(-1)
    if logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1, keepdims=True))[..., 0]
    return logits.argmax(-1)


def near_ties(logits_NV: Tensor) -> list[bool]:
    """Whether another token is as likely as the likeliest, to NEAR parts of rounding.

    There a forward over another number of columns, which rounds otherwise, may choose another.
    """
    best_N1 = logits_NV.amax(-1, keepdim=True)
    least_N1 = best_N1 - NEAR[logits_NV.dtype] * best_N1.abs()
    has_bits = logits_NV.device.type == "cpu" and logits_NV.dtype == torch.bfloat16
    if has_bits and bool((least_N1 > 0).all()):  # bits of positive numbers order as these do
        bits_NV = logits_NV.contiguous().view(torch.int16).numpy()
        close_N = (bits_NV >= least_N1.view(torch.int16).numpy()).sum(-1)
    else:
        close_N = (logits_NV >= least_N1).sum(-1)
    found: list[bool] = (close_N > 1).tolist()
    return found


def token_logprobs(
    logits_KV: Tensor, tokens: Sequence[int], num_top: int
) -> tuple[TokenLogprob, ...]:
    """The log probability of each token, and those of the likeliest ones in its place."""
    scores_KV = logits_KV.float().log_softmax(-1)
    top = scores_KV.topk(num_top, dim=-1)
    own = scores_KV[range(len(tokens)), list(tokens)].tolist()
    return tuple(
        TokenLogprob(token, score, tuple(zip(ids, values, strict=True)))
        for token, score, ids, values in zip(
            tokens, own, top.indices.tolist(), top.values.tolist(), strict=True
        )
    )


def choose(logits_NV: Tensor, rows: Sequence[Row], drafts: Drafts) -> list[int]:
    """One token a row, from logits after `drafts`; ModelError where they are not finite."""
    logits_NV = adjusted_logits(logits_NV, rows, drafts)
    if not bool(logits_NV.amax(-1).isfinite().all()):
        raise ModelError("the model's logits are NaN or infinite, so no token can be chosen")
    chosen: list[int] = likeliest(logits_NV).tolist()
    sampled = [index for index, row in enumerate(rows) if not row.settings.is_greedy]
    if sampled:
        theirs = [rows[index] for index in sampled]
        drawn = draw_tokens(
            distributions(logits_NV[sampled], theirs),
            theirs,
            [drafts[index] for index in sampled],
        )
        for index, token in zip(sampled, drawn, strict=True):
            chosen[index] = token
    return chosen


def draw_tokens(probabilities_NV: Tensor, rows: Sequence[Row], drafts: Drafts) -> list[int]:
    """One token a row, by the row's own random number for the place after its draft."""
    numbers = [
        uniform(row.random_key, len(row.tokens) + len(draft))
        for row, draft in zip(rows, drafts, strict=True)
    ]
    uniforms_N = torch.tensor(numbers, dtype=torch.float64).to(probabilities_NV)
    drawn: list[int] = draw(probabilities_NV, uniforms_N).tolist()
    return drawn
