"""What the forgetting of each head costs alone, for all rules at once, from few backward passes.

To second order the divergence from the full cache is a sum over judged tokens,

    KL = 1/2 sum_n Var_{v ~ p_n}(dz_nv),    dz = the change of token n's logits,

and for noise x ~ N(0, 1) the gradient of  sum_nv sqrt(p_nv) x_nv log p_nv  along a change of the
model has the variance  2 KL.  So one backward pass gives, at the outputs of every attention head,
a direction g such that for whatever a head says otherwise, d,

    KL = E[(sum_t g_t . d_t)^2] / 2.

The square of one sum over a whole text has one degree of freedom, so its noise is as large as
itself, and a search would pick the heads that were underestimated.  Sums over blocks of tokens,
squared one by one, have many; what they leave out, products between blocks, is put back as one
factor for the whole text.

What a head says when it keeps less needs no forward: its queries, keys and values are there.

We differ from measuring each head by a forward of its own: 30 blocks of 3 heads and 12 rules would
be 1,080 forwards a text, and in bf16 most effects are below the noise of rounding.

Shapes: B = 1 row, H query heads, G KV heads, T tokens, N judged tokens, V vocabulary, d head size,
K probes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import attend, heads_of, read_by, sliding_of
from lightstride.memory.fitness import TARGETS, Text, logits_of
from lightstride.memory.masks import text_mask
from lightstride.memory.plan import ALL, SINKS, Keep

MOST_JUDGED = 512
"""Judged tokens of a text that are probed: their logits are all there at once."""
BLOCK = 16
"""Tokens whose contributions are added before they are squared."""
Effects = list[list[list[float]]]
"""Divergence, in nats a judged token, by block, head and rule."""


@dataclass
class Recorder:
    """Full attention that remembers what it computed with."""

    sliding: list[int | None]
    layers: dict[int, tuple[Tensor, Tensor, Tensor, float]] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        states = (query_BHTd, key_BGTd, value_BGTd)
        output = remembered(states, ALL, self.sliding[layer], scale)
        query, key, value = (each.detach() for each in states)
        self.layers[layer] = (query, key, value, scale)
        self.outputs[layer] = output
        return output


def remembered(
    states: tuple[Tensor, Tensor, Tensor], keep: Keep, sliding: int | None, scale: float
) -> Tensor:
    """Outputs of heads that all keep the same, (B, H, T, d), from queries, keys and values."""
    query_BHTd, key_BGTd, value_BGTd = states
    if keep == ALL and sliding is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query_BHTd, key_BGTd, value_BGTd, scale=scale, is_causal=True, enable_gqa=True
        )
    mask_TT = text_mask(keep, query_BHTd.shape[2], SINKS, query_BHTd.device, sliding)
    return attend(query_BHTd, key_BGTd, value_BGTd, mask_TT[None], scale)


def text_effects(
    model: PreTrainedModel, text: Text, keeps: Sequence[Keep], probes: int, seed: int
) -> Effects:
    """Effects on one text."""
    recorder = Recorder(sliding_of(model))
    gradients = probe(model, text, recorder, probes, seed)
    judged = min(len(text.tokens) - text.start, MOST_JUDGED)
    whole = apart = 0.0
    found: Effects = [[[0.0] * len(keeps) for _ in range(count)] for count in heads_of(model)]
    with torch.inference_mode():
        for layer, (query, key, value, scale) in recorder.layers.items():
            groups = key.shape[1]
            for place, keep in enumerate(keeps):
                states = (query, key, value)
                said_BHTd = remembered(states, keep, recorder.sliding[layer], scale)
                change_BHTd = (said_BHTd - recorder.outputs[layer].detach()).float()
                along_KGT = torch.stack(
                    [
                        (each[layer].float() * change_BHTd)
                        .sum((0, 3))
                        .unflatten(0, (groups, -1))
                        .sum(1)
                        for each in gradients
                    ]
                )
                whole += float(along_KGT.sum(-1).square().sum())
                squares_G = sum(
                    (part.sum(-1).square().mean(0) for part in along_KGT.split(BLOCK, dim=-1)),
                    torch.zeros(groups),
                )
                apart += float(squares_G.sum()) * len(gradients)
                for head, square in enumerate(squares_G.tolist()):
                    found[layer][head][place] = square / 2 / judged
    factor = max(1.0, whole / apart) if apart else 1.0
    return [[[factor * each for each in rules] for rules in block] for block in found]


def probe(
    model: PreTrainedModel, text: Text, recorder: Recorder, probes: int, seed: int
) -> list[dict[int, Tensor]]:
    """Random directions at the outputs of every layer's heads, one dictionary a probe."""
    generator = torch.Generator().manual_seed(seed)
    tokens_1T = torch.tensor([text.tokens], device=model.device)
    positions_1T = torch.arange(len(text.tokens), device=model.device)[None]
    end = min(len(text.tokens), text.start + MOST_JUDGED) - 1
    with torch.enable_grad(), read_by(model, recorder):
        embeddings = model.get_input_embeddings()(tokens_1T).detach().requires_grad_()
        output = model.get_decoder()(
            inputs_embeds=embeddings, position_ids=positions_1T, use_cache=False
        )
    with torch.enable_grad():
        logits_NV = logits_of(model, output.last_hidden_state[0, text.start - 1 : end])
        log_NV = logits_NV.float().log_softmax(-1)
    root_NV = (log_NV.detach() / 2).exp()
    layers = list(recorder.outputs)
    found = []
    for number in range(probes):
        noise_NV = torch.randn(log_NV.shape, generator=generator).to(root_NV)
        directions = torch.autograd.grad(
            log_NV,
            [recorder.outputs[layer] for layer in layers],
            grad_outputs=root_NV * noise_NV,
            retain_graph=number + 1 < probes,
        )
        found.append(dict(zip(layers, directions, strict=True)))
    return found


def mean_effects(texts: Sequence[Text], effects: Sequence[Effects]) -> Effects:
    """Effects over all texts, each domain with the same weight, those that tolerate more less."""
    domains = [text.domain for text in texts]
    weights = [
        1 / (TARGETS.get(domain, 1.0) * domains.count(domain) * len(set(domains)))
        for domain in domains
    ]
    return [
        [
            [
                sum(w * each[block][head][rule] for w, each in zip(weights, effects, strict=True))
                for rule in range(len(effects[0][block][head]))
            ]
            for head in range(len(effects[0][block]))
        ]
        for block in range(len(effects[0]))
    ]
