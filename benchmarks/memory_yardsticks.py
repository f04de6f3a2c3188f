"""What memory plans are compared with: caches in few bits, eviction by attention, packed weights.

All are masked twins of a cache: a text is read in one forward and attention sees what the cache
would still hold, or something near it.

    stored     keys and values rounded to so many bits
    evicted    after H2O (arXiv 2306.14048): every head keeps the first tokens, the latest, and the
               tokens that got the most attention so far.  We differ: attention is counted as the
               full cache gives it, which favors the eviction, and old tokens go in chunks
    packed     the model's own weights in llama.cpp's types, read back as its engine reads them

Shapes: B rows, H query heads, G KV heads, T tokens, d head size.
"""

import math
from collections.abc import Callable

import torch
from gguf import quants
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.export.gguf.architecture import LLAMA_CPP, architecture_for
from lightstride.export.gguf.quantize import pack
from lightstride.export.gguf.tensors import plan_tensors
from lightstride.export.gguf.weights import ModelWeights
from lightstride.memory.attention import read_by, sliding_of
from lightstride.memory.fitness import Text
from lightstride.memory.masked import MaskedReader
from lightstride.memory.masks import text_mask
from lightstride.memory.plan import ALL, CHUNK, SINKS, Keep, MemoryPlan
from lightstride.memory.scores import Scores
from lightstride.models.families.registry import adapter_for

Store = Callable[[Tensor], Tensor]
"""What a cache makes of keys or values that it stores, (B, G, T, d)."""


class StoringReader(MaskedReader):
    """The masked twin of a cache that stores something near what it is given."""

    def __init__(
        self,
        plan: MemoryPlan,
        positions_BT: Tensor,
        sliding: list[int | None],
        store: Store,
        scores: Scores | None = None,
    ) -> None:
        super().__init__(plan, positions_BT, sliding, scores)
        self.store = store

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        stored = self.store(key_BGTd), self.store(value_BGTd)
        return super().read(layer, query_BHTd, *stored, scale)


def in_bits(bits: int, group: int | None) -> Store:
    """Keys or values rounded to so many bits, with a scale for each token and group of values."""
    largest = 2 ** (bits - 1) - 1

    def store(states: Tensor) -> Tensor:
        size = states.shape[-1]
        parts = states.unflatten(-1, (-1, size if group is None else math.gcd(group, size)))
        scale = (parts.abs().amax(-1, keepdim=True) / largest).clamp_min(1e-8)
        return ((parts / scale).round() * scale).reshape(states.shape)

    return store


class EvictingReader:
    """Attention over what eviction by attention leaves of so many entries a head."""

    def __init__(self, entries: int, sliding: list[int | None]) -> None:
        self.recent = Keep(0, max(1, entries // 2 - CHUNK))
        self.entries = entries
        self.sliding = sliding

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d); B is 1."""
        num_tokens, groups = query_BHTd.shape[2], key_BGTd.shape[1]
        shared = query_BHTd.shape[1] // groups
        query_GRTd = query_BHTd[0].unflatten(0, (groups, shared))
        device, sliding = query_BHTd.device, self.sliding[layer]
        causal_TT = text_mask(ALL, num_tokens, 0, device, sliding)
        logits_GRTT = query_GRTd @ key_BGTd[0, :, None].transpose(-1, -2) * scale
        logits_GRTT = logits_GRTT.float().masked_fill(~causal_TT, -math.inf)
        received_GTT = logits_GRTT.softmax(-1).sum(1).cumsum_(1)
        seen_GTT = causal_TT & self.seen(received_GTT)
        weights_GRTT = logits_GRTT.masked_fill_(~seen_GTT[:, None], -math.inf).softmax(-1)
        output_GRTd = weights_GRTT.to(value_BGTd.dtype) @ value_BGTd[0, :, None]
        return output_GRTd.flatten(0, 1)[None]

    def seen(self, received_GTT: Tensor) -> Tensor:
        """Which tokens are there for each query, (G, T, T), causality left out.

        `received_GTT` is the attention that each token got up to each query.
        """
        groups, num_tokens, _ = received_GTT.shape
        seen_GTT = torch.ones_like(received_GTT, dtype=torch.bool)
        there_GT = torch.ones(groups, num_tokens, dtype=torch.bool, device=received_GTT.device)
        heavy = self.entries - (num_tokens - self.recent.border(num_tokens))
        before = 0
        for query in range(num_tokens):
            border = self.recent.border(query)
            if border != before:
                before = border
                score_GT = received_GTT[:, query - 1, :border].clone()
                score_GT[:, :SINKS] = math.inf
                score_GT.masked_fill_(~there_GT[:, :border], -1.0)
                best_GK = score_GT.topk(min(max(heavy, SINKS), border)).indices
                stay_GT = torch.zeros_like(there_GT[:, :border]).scatter_(1, best_GK, True)
                there_GT[:, :border] &= stay_GT
            seen_GTT[:, query] = there_GT
        return seen_GTT


@torch.inference_mode()
def stored_hidden(
    model: PreTrainedModel,
    text: Text,
    plan: MemoryPlan,
    store: Store,
    scores: Scores | None = None,
) -> Tensor:
    """Hidden states that predict the judged tokens, read from what a cache stores, (N, D)."""
    positions_1T = torch.arange(len(text.tokens), device=model.device)[None]
    with read_by(model, StoringReader(plan, positions_1T, sliding_of(model), store, scores)):
        return judged_hidden(model, text)


@torch.inference_mode()
def evicted_hidden(model: PreTrainedModel, text: Text, entries: int) -> Tensor:
    """The same after eviction by attention down to so many entries a head."""
    with read_by(model, EvictingReader(entries, sliding_of(model))):
        return judged_hidden(model, text)


def judged_hidden(model: PreTrainedModel, text: Text) -> Tensor:
    """Hidden states that predict the judged tokens, by whatever attention is set, (N, D)."""
    tokens_1T = torch.tensor([text.tokens], device=model.device)
    positions_1T = torch.arange(len(text.tokens), device=model.device)[None]
    output = model.get_decoder()(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False)
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD[text.start - 1 : -1]


def packed_weights(model: PreTrainedModel, dtype: str) -> dict[str, Tensor]:
    """The matrices of a model after they were packed into a type of llama.cpp, by name."""
    geometry = adapter_for(model.config).geometry(model.config)
    architecture = architecture_for(model.config, geometry)
    naming = LLAMA_CPP[geometry.family].same_widths
    weights = ModelWeights(model)
    tensors = plan_tensors(weights, geometry, architecture, naming, dtype)
    found = {}
    for tensor in tensors:
        for source in tensor.sources if len(tensor.shape) > 1 else ():
            weight = weights.load(source)
            floats = quants.dequantize(pack(weight, tensor.kind), tensor.kind)
            found[source] = torch.from_numpy(floats.copy()).reshape(weight.shape)
    return found
