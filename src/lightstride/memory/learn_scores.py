"""Learn the scores by which heads choose: a ridge regression for each head.

What is predicted is how much an entry will be looked at once it is old,

    y_j = log(eps + mean over queries t for which j is old of sum over query heads a_tj),

with the attention a of the full cache.  Only tokens of one chunk are ever compared, so y and the
numbers of the entries are taken relative to their chunk's mean:

    w = (X^T X + lambda diag(X^T X))^-1 X^T y,    each text with the same weight.

After KVzap (arXiv 2601.07891), which predicts attention received by a regression from hidden
states.  We differ: keys and values stand for hidden states, so that a score is the cache's own
affair, and ranks count within a chunk.

Shapes: B = 1 row, H query heads, G KV heads, R queries a KV head, T tokens, M tokens that are old
for enough queries, F numbers of an entry, d head size.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import read_by
from lightstride.memory.cache import full_plan
from lightstride.memory.masks import borders
from lightstride.memory.plan import CHUNK, Keep
from lightstride.memory.scores import Scores, numbers_of

WINDOW = 128
"""Tokens that are not yet old; scores serve all windows."""
FEWEST = 64
"""Queries for which a token must be old, to be learned from."""
RIDGE = 0.01
EPSILON = 1e-6
Normal = tuple[Tensor, Tensor]
"""X^T X and X^T y of every KV head of a layer, (G, F, F) and (G, F), a token."""


class Learner:
    """Attention of the full cache that adds up what the regressions need."""

    def __init__(self) -> None:
        self.found: dict[int, Normal] = {}

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        groups, num_tokens = key_BGTd.shape[1:3]
        queries_T = torch.arange(num_tokens, device=key_BGTd.device)
        old_TT = queries_T < borders(Keep(0, WINDOW), queries_T)[:, None]
        later_TT = queries_T > queries_T[:, None]
        count_T = old_TT.sum(0)
        learned = int((count_T >= FEWEST).sum()) // CHUNK * CHUNK
        chosen = slice(min(CHUNK, learned), learned)
        outputs, normals = [], []
        for group in range(groups):
            query_RTd = query_BHTd[0].unflatten(0, (groups, -1))[group]
            logit_RTT = (query_RTd @ key_BGTd[0, group].T).float().mul_(scale)
            weight_RTT = logit_RTT.masked_fill_(later_TT, -torch.inf).softmax(-1)
            outputs.append(weight_RTT.to(value_BGTd.dtype) @ value_BGTd[0, group])
            seen_T = (weight_RTT.sum(0) * old_TT).sum(0) / count_T.clamp(min=1)
            numbers_TF = numbers_of(key_BGTd[0, group].float(), value_BGTd[0, group].float())
            normals.append(normal(numbers_TF[chosen], (seen_T[chosen] + EPSILON).log()))
        gram, moment = zip(*normals, strict=True)
        self.found[layer] = torch.stack(gram), torch.stack(moment)
        return torch.cat(outputs)[None]


def normal(numbers_MF: Tensor, wanted_M: Tensor) -> Normal:
    """X^T X and X^T y of one head, a token, with X and y relative to their chunks' means."""
    chunks_NWF = numbers_MF.double().unflatten(0, (-1, CHUNK))
    wanted_NW = wanted_M.double().unflatten(0, (-1, CHUNK))
    x_MF = (chunks_NWF - chunks_NWF.mean(1, keepdim=True)).flatten(0, 1)
    y_M = (wanted_NW - wanted_NW.mean(1, keepdim=True)).flatten()
    return x_MF.T @ x_MF / max(1, len(y_M)), x_MF.T @ y_M / max(1, len(y_M))


@torch.inference_mode()
def learn_scores(model: PreTrainedModel, texts: Iterable[Sequence[int]]) -> Scores:
    """Scores of all heads, learned from some texts."""
    sums: dict[int, Normal] = {}
    for tokens in texts:
        learner = Learner()
        tokens_1T = torch.tensor([list(tokens)], device=model.device)
        places_1T = torch.arange(len(tokens), device=model.device)[None]
        with read_by(model, learner):
            model.get_decoder()(input_ids=tokens_1T, position_ids=places_1T, use_cache=False)
        for layer, (gram, moment) in learner.found.items():
            before = sums.get(layer, (torch.zeros_like(gram), torch.zeros_like(moment)))
            sums[layer] = before[0] + gram, before[1] + moment
    zeros = Scores.zeros(full_plan(model)).blocks
    return Scores(
        [solved(sums[block]) if block in sums else zeros[block] for block in range(len(zeros))]
    )


def solved(sums: Normal) -> Tensor:
    """The weights of a block's heads, (G, F)."""
    gram_GFF, moment_GF = sums
    diagonal_GF = gram_GFF.diagonal(dim1=-2, dim2=-1)
    damped_GFF = gram_GFF + torch.diag_embed(RIDGE * diagonal_GF + 1e-9)
    weight_GF: Tensor = torch.linalg.solve(damped_GFF, moment_GF)
    return weight_GF.float().cpu().contiguous()
