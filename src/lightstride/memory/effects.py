"""What another rule of one head changes, for all heads and rules at once, by few backward passes.

Around a plan, with p the full cache's distribution, q the plan's and dz the change of a judged
token's logits that one head's other rule makes, to second order

    KL(p | q') - KL(p | q) = sum_n (q_n - p_n) . dz_n + 1/2 Var_{v ~ q_n}(dz_nv).

The first term is the gradient of the loss; at the full cache it is nothing.  For the second, with
noise x ~ N(0, 1), the gradient of  sum_nv sqrt(q_nv) x_nv log q_nv  along a change has just this
variance.  So each backward pass gives, at the outputs of every attention head, a direction g such
that sum_t g_t . d_t is the one term, or half its square on average the other, for whatever a head
says otherwise, d.  Near a plan heads that stand in for each other are seen: those that are left
cost the more, the fewer they are.

The second term holds for small changes: it grows with their square, the divergence does not.  At
plans that lose 0.6 nats a token of a toy it is four times too large, and says that heads had better
not come back that should (correlation with what is measured -0.2 to -0.8; of the first term alone
0.76 to 0.98).  So on a text that loses more than 0.2 the second term counts less, by the square of
their ratio: 0.84 to 0.99, and half of the first term's error.

The square of one sum over a whole text has one degree of freedom, so its noise is as large as
itself, and a search would pick the heads that were underestimated.  Sums over blocks of tokens,
squared one by one, have many; what they leave out, products between blocks, is put back as one
factor for the whole text.

What a head says when it keeps less needs no forward: its queries, keys and values are there, and
so are the scores by which it would choose.  All rules are sums over chunks of columns, so they
share one pass over the attention:

    g_t . output_t = sum_j E_tj (g_t . v_j) / sum_j E_tj    over the columns j that the rule keeps.

We differ from measuring each head by a forward of its own: 30 blocks of 3 heads and 12 rules would
be 1,080 forwards a text, and in bf16 most effects are below the noise of rounding.

Shapes: B = 1 row, H query heads, G KV heads, T tokens, C chunks of W columns, N judged tokens, V
vocabulary, d head size, K directions, P kinds of what rules keep of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.memory.attention import heads_of, read_by, sliding_of
from lightstride.memory.fitness import TARGETS, Text, logits_of
from lightstride.memory.masked import MaskedReader
from lightstride.memory.masks import borders, stays
from lightstride.memory.plan import ALL, CHUNK, Keep, MemoryPlan
from lightstride.memory.scores import Scores, chooses

MOST_JUDGED = 512
"""Judged tokens of a text that are probed: their logits are all there at once."""
LITTLE = 0.2
"""Nats a token up to which the second term holds; beyond, it counts less."""
BLOCK = 16
"""Tokens whose contributions are added before they are squared."""
Effects = list[list[list[float]]]
"""Change of the divergence, in nats a judged token, by block, head and rule."""


@dataclass(frozen=True)
class Attended:
    """What a layer's attention computed with: queries, keys, values and their scale."""

    query_BHTd: Tensor
    key_BGTd: Tensor
    value_BGTd: Tensor
    scale: float


class Recorder(MaskedReader):
    """Attention under a plan that remembers what it computed with."""

    def __init__(
        self,
        plan: MemoryPlan,
        num_tokens: int,
        sliding: list[int | None],
        scores: Scores | None = None,
    ) -> None:
        super().__init__(plan, torch.arange(num_tokens)[None], sliding, scores)
        self.layers: dict[int, Attended] = {}
        self.outputs: dict[int, Tensor] = {}

    def read(
        self, layer: int, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, scale: float
    ) -> Tensor:
        """The heads' outputs, shape (B, H, T, d)."""
        self.positions_BT = self.positions_BT.to(query_BHTd.device)
        output = super().read(layer, query_BHTd, key_BGTd, value_BGTd, scale)
        self.layers[layer] = Attended(
            query_BHTd.detach(), key_BGTd.detach(), value_BGTd.detach(), scale
        )
        self.outputs[layer] = output
        return output


Kind = tuple[int, str]
"""What is kept of old tokens, whatever the window: `every` and `choice` of a rule."""


def kind_of(keep: Keep, sliding: int | None) -> Kind:
    """What a rule keeps of old tokens."""
    if keep.choice == "slide":
        return keep.every, "slide"
    return keep.every, "best" if chooses(keep, sliding) else "last"


def kept_tokens(
    attended: Attended, layer: int, keeps: Sequence[Keep], reader: MaskedReader
) -> tuple[list[Kind], Tensor]:
    """The kinds of some rules and which tokens each keeps when they are old, (G, T, P).

    All of them and the first tokens alone come first.
    """
    sliding, sinks = reader.sliding[layer], reader.plan.sinks
    key_BGTd, value_BGTd = attended.key_BGTd, attended.value_BGTd
    groups, num_tokens = key_BGTd.shape[1:3]
    places_T = torch.arange(num_tokens, device=key_BGTd.device)
    kinds: dict[Kind, Tensor] = {}
    for keep in (ALL, Keep(0, 1), *keeps):
        kind = kind_of(keep, sliding)
        if kind in kinds:
            continue
        if kind[1] != "best":
            kinds[kind] = stays(keep, places_T, sinks).expand(groups, -1)
            continue
        assert reader.scores is not None, "rules that choose by scores, and none are there"
        kinds[kind] = reader.scores.stay_in_text(
            layer, torch.arange(groups), key_BGTd, value_BGTd, keep, sinks
        )[0]
    return list(kinds), torch.stack(list(kinds.values()), -1).float()


def said_along(
    attended: Attended,
    directions_KHTd: Tensor,
    keeps: Sequence[Keep],
    layer: int,
    reader: MaskedReader,
) -> Tensor:
    """Products of directions with the outputs under each rule, summed over the query heads of
    each KV head, shape (rules, K, G, T)."""
    query_HTd, value_GTd = attended.query_BHTd[0].float(), attended.value_BGTd[0].float()
    groups, num_tokens = value_GTd.shape[:2]
    places_T = torch.arange(num_tokens, device=query_HTd.device)
    hidden_TT = places_T > places_T[:, None]
    sliding = reader.sliding[layer]
    if sliding is not None:
        hidden_TT |= places_T <= places_T[:, None] - sliding
    kinds, kept_GTP = kept_tokens(attended, layer, keeps, reader)
    wanted = [(keep, kinds.index(kind_of(keep, sliding))) for keep in keeps]
    sums: list[list[Tensor]] = []
    for group in range(groups):
        heads = slice(group * len(query_HTd) // groups, (group + 1) * len(query_HTd) // groups)
        key_Td = attended.key_BGTd[0, group].float()
        weight_HTT = (query_HTd[heads] @ key_Td.T).mul_(attended.scale)
        weight_HTT.masked_fill_(hidden_TT, -torch.inf)
        weight_HTT = weight_HTT.sub_(weight_HTT.amax(-1, keepdim=True)).exp_()
        masses = [rule_sums(weight_HTT, kept_GTP[group], wanted)]
        for direction_HTd in directions_KHTd[:, heads].float():
            product_HTT = (direction_HTd @ value_GTd[group].T).mul_(weight_HTT)
            masses.append(rule_sums(product_HTT, kept_GTP[group], wanted))
        sums.append([(part / masses[0].clamp_min(1e-30)).sum(1) for part in masses[1:]])
    return torch.stack([torch.stack(each, 1) for each in sums], 2)


def rule_sums(weight_HTT: Tensor, kept_TP: Tensor, wanted: Sequence[tuple[Keep, int]]) -> Tensor:
    """Sums over the columns that each rule keeps of each query's, shape (rules, H, T).

    A rule comes with the number of its kind in `kept_TP`, where all tokens and the first are the
    first two.
    """
    num_tokens = weight_HTT.shape[-1]
    more = -num_tokens % CHUNK
    chunks_HTCW = torch.nn.functional.pad(weight_HTT, (0, more)).unflatten(-1, (-1, CHUNK))
    kept_CWP = torch.nn.functional.pad(kept_TP, (0, 0, 0, more)).unflatten(0, (-1, CHUNK))
    part_HTCP = torch.einsum("htcw,cwp->htcp", chunks_HTCW, kept_CWP)
    before_HTCP = torch.nn.functional.pad(part_HTCP, (0, 0, 1, 0)).cumsum(2)
    whole_HT = before_HTCP[:, :, -1, 0]
    queries_T = torch.arange(num_tokens, device=weight_HTT.device)
    old: dict[int, Tensor] = {}
    sums = []
    for keep, kind in wanted:
        if keep.every == 1:
            sums.append(whole_HT)
            continue
        if keep.choice == "slide":
            young_TT = queries_T >= borders(keep, queries_T)[:, None]
            sums.append((weight_HTT * young_TT).sum(-1))
            continue
        if keep.window not in old:
            chunk_T = borders(keep, queries_T) // CHUNK
            old[keep.window] = before_HTCP[:, queries_T, chunk_T].movedim(-1, 0).contiguous()
        all_HT, sinks_HT, kept_HT = (old[keep.window][number] for number in (0, 1, kind))
        sums.append(whole_HT - all_HT + sinks_HT)
        if keep.every:
            sums[-1] = torch.add(sums[-1], kept_HT - sinks_HT, alpha=keep.weight)
    return torch.stack(sums)


def text_effects(
    model: PreTrainedModel,
    text: Text,
    reference_ND: Tensor,
    plan: MemoryPlan,
    keeps: Sequence[Keep],
    probes: int,
    seed: int,
    scores: Scores | None = None,
) -> tuple[float, Effects]:
    """The loss of a plan on one text, and what every head's other rules change.

    `reference_ND` are the full cache's hidden states that predict the judged tokens.  Without
    probes the effects are the first term alone.
    """
    recorder = Recorder(plan, len(text.tokens), sliding_of(model), scores)
    loss, gradients = probe(model, text, reference_ND, recorder, probes, seed)
    judged = min(len(text.tokens) - text.start, MOST_JUDGED)
    whole = apart = 0.0
    firsts: list[Tensor] = []
    seconds: list[Tensor] = []
    with torch.inference_mode():
        for layer, attended in recorder.layers.items():
            now = plan.blocks[layer]
            directions_KHTd = torch.stack([each[layer][0] for each in gradients])
            said_RKGT = said_along(attended, directions_KHTd, [*keeps, *now], layer, recorder)
            base_KGT = torch.stack(
                [said_RKGT[len(keeps) + head, :, head] for head in range(len(now))], 1
            )
            change_RKGT = said_RKGT[: len(keeps)] - base_KGT
            firsts.append(change_RKGT[:, 0].sum(-1))
            noise_RKGT = change_RKGT[:, 1:]
            whole += float(noise_RKGT.sum(-1).square().sum())
            blocks_RKGC = torch.stack(
                [part.sum(-1) for part in noise_RKGT.split(BLOCK, dim=-1)], -1
            )
            squares_RKG = blocks_RKGC.square().sum(-1)
            apart += float(squares_RKG.sum())
            seconds.append(squares_RKG.sum(1) / (2 * max(1, probes)))
    factor = max(1.0, whole / apart) if apart else 1.0
    factor *= min(1.0, (LITTLE * judged / max(loss, 1e-9)) ** 2)
    found = [
        ((first_RG + factor * second_RG) / judged).T.tolist()
        for first_RG, second_RG in zip(firsts, seconds, strict=True)
    ]
    layers = dict(zip(recorder.layers, found, strict=True))
    return loss / judged, [layers.get(block, []) for block in range(len(heads_of(model)))]


def probe(
    model: PreTrainedModel,
    text: Text,
    reference_ND: Tensor,
    recorder: Recorder,
    probes: int,
    seed: int,
) -> tuple[float, list[dict[int, Tensor]]]:
    """The loss, summed over judged tokens, and directions at the outputs of every layer's heads.

    The first direction is the loss's gradient, the others are random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens_1T = torch.tensor([text.tokens], device=model.device)
    positions_1T = torch.arange(len(text.tokens), device=model.device)[None]
    end = min(len(text.tokens), text.start + MOST_JUDGED) - 1
    with torch.inference_mode():
        full_NV = logits_of(model, reference_ND[: end - text.start + 1]).float().log_softmax(-1)
    full_NV = full_NV.clone()
    with torch.enable_grad(), read_by(model, recorder):
        embeddings = model.get_input_embeddings()(tokens_1T).detach().requires_grad_()
        output = model.get_decoder()(
            inputs_embeds=embeddings, position_ids=positions_1T, use_cache=False
        )
    with torch.enable_grad():
        hidden_ND = output.last_hidden_state[0, text.start - 1 : end]
        log_NV = logits_of(model, hidden_ND).float().log_softmax(-1)
    root_NV = (log_NV.detach() / 2).exp()
    loss = float((full_NV.exp() * (full_NV - log_NV.detach())).sum())
    targets = [-full_NV.exp()]
    for _ in range(probes):
        noise_NV = torch.randn(log_NV.shape, generator=generator).to(root_NV)
        targets.append(root_NV * noise_NV)
    layers = list(recorder.outputs)
    found = []
    for number, target_NV in enumerate(targets):
        directions = torch.autograd.grad(
            log_NV,
            [recorder.outputs[layer] for layer in layers],
            grad_outputs=target_NV,
            retain_graph=number < probes,
        )
        found.append(dict(zip(layers, directions, strict=True)))
    return loss, found


def text_weights(texts: Sequence[Text]) -> list[float]:
    """Weights of texts: each domain has the same, those that tolerate more less."""
    domains = [text.domain for text in texts]
    return [
        1 / (TARGETS.get(domain, 1.0) * domains.count(domain) * len(set(domains)))
        for domain in domains
    ]


def mean_effects(texts: Sequence[Text], effects: Sequence[Effects]) -> Effects:
    """Effects over all texts, by their weights."""
    weights = text_weights(texts)
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
