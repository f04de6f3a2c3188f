"""Toy smashed models with random grafts, and decoders so slow that they are easy to trust."""

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from helpers.agree import TIE
from helpers.toys import tiny_llama, tiny_qwen3
from lightstride.generate import Settings
from lightstride.generate.rows import Row
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionShape, FFNShape
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.lookup import LONGEST, LOOKUP_ACCURACY
from lightstride.smash.model.slots import SlotBatch

PROMPTS = [[72, 101, 108], [1, 2, 3, 4, 5, 6, 7, 8, 9], [200], [40, 41, 42, 43]]
LIKELY = (7, 11, 65, 66, 150)
"""The only tokens that a sharp base says."""


def fewer_queries_llama(block: int) -> PreTrainedModel:
    """A Llama of which one block has one query head for each KV head, the other two."""
    model = tiny_llama(tied=False)
    adapter = adapter_for(model.config)
    changed = adapter.blocks(model)[block]
    attention = adapter.read(changed, "attention")
    kept = [*range(8), *range(16, 24)]
    fewer = {
        **attention,
        "query": attention["query"][kept],
        "output": attention["output"][:, kept],
    }
    adapter.write(changed, "attention", fewer, AttentionShape(2, 2))
    return model


def uneven_llama() -> PreTrainedModel:
    """A Llama whose blocks have lost different parts, as after pruning."""
    model = tiny_llama(tied=False)
    adapter = adapter_for(model.config)
    first, second = adapter.blocks(model)
    attention = adapter.read(first, "attention")
    half = {
        "query": attention["query"][:16],
        "key": attention["key"][:8],
        "value": attention["value"][:8],
        "output": attention["output"][:, :16],
    }
    adapter.write(first, "attention", half, AttentionShape(1, 2))
    ffn = adapter.read(second, "ffn")
    fewer = {"gate": ffn["gate"][:20], "up": ffn["up"][:20], "down": ffn["down"][:, :20]}
    adapter.write(second, "ffn", fewer, FFNShape(20))
    return model


BASES = {
    "llama": lambda: tiny_llama(tied=False),
    "qwen3": lambda: tiny_qwen3(tied=False),
    "uneven": uneven_llama,
}


def sharp(base: PreTrainedModel) -> PreTrainedModel:
    """The same model, saying only a few tokens, so that drafts are sometimes right."""
    head = base.get_output_embeddings()
    with torch.no_grad():
        kept = head.weight[list(LIKELY)].clone()
        head.weight.mul_(0.05)
        head.weight[list(LIKELY)] = 3 * kept
    return base


def toy(
    base: PreTrainedModel | None = None,
    *,
    max_segment: int = 4,
    num_layers: int = 2,
    seed: int = 0,
    micro_vocabulary: Sequence[int] | None = None,
    merges: bool = True,
) -> SmashModel:
    """Random grafts on a toy, with an embedder if they merge; the stop head goes on about half of
    the time."""
    base = base if base is not None else sharp(BASES["llama"]())
    geometry = adapter_for(base.config).geometry(base.config)
    config = SmashConfig.thin(base.config, geometry, max_segment=max_segment)
    config.micro_layers = num_layers
    if merges:
        config.embedder_heads, config.mode = 4, "trust"
    chosen = None if micro_vocabulary is None else torch.tensor(micro_vocabulary)
    torch.manual_seed(seed)
    model = SmashModel.graft(base, config, micro_vocabulary=chosen)
    with torch.no_grad():
        for graft in model.grafts():
            for parameter in graft.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def a_row(
    prompt: Sequence[int],
    *,
    pending: Sequence[int] = (),
    ends: Iterable[int] = (),
    limit: int = 99,
    **settings: object,
) -> Row:
    """A row of a session that was never opened."""
    row = Row("row", tuple(prompt), Settings(**settings), b"", limit, frozenset(ends))
    row.pending = list(pending)
    return row


def slot_batch(prompt: Sequence[int], segments: Sequence[Sequence[int]]) -> SlotBatch:
    """One row: the prompt apart, then merged segments; every segment is to be predicted."""
    lengths = [1] * len(prompt) + [len(segment) for segment in segments]
    tokens = [*prompt, *(token for segment in segments for token in segment)]
    predicts = [len(prompt) - 1 <= slot < len(lengths) - 1 for slot in range(len(lengths))]
    return SlotBatch(torch.tensor([tokens]), torch.tensor([lengths]), torch.tensor([predicts]))


@torch.no_grad()
def features(model: SmashModel, prompt: Sequence[int], segments: Sequence[Sequence[int]]):
    """Taps (1, T, D) of the last slot, computed without a cache."""
    hidden = model.read_packed(slot_batch(prompt, segments))
    return torch.stack([states[:, -1] for states in hidden], dim=1)


class Judge:
    """Decides for the slow twins, where no rounding could have decided otherwise."""

    HAIR = 2e-5

    @staticmethod
    def likeliest(logits_1V: torch.Tensor) -> int:
        """The likeliest token, which leads by more than a tie."""
        first, second = logits_1V.topk(2).values.flatten().tolist()
        assert first - second > TIE, "two tokens are equally likely: take another toy"
        return int(logits_1V.argmax(-1))

    @classmethod
    def below(cls, sure: float, confidence: float) -> bool:
        """Whether a draft is less sure than it must be, by more than a hair."""
        assert abs(sure - confidence) > cls.HAIR, "sure by a hair: take another toy"
        return sure < confidence


@torch.no_grad()
def slow_segment(model: SmashModel, taps_1TD, text, confidence: float, room: int):
    """A segment said greedily, every micro step recomputed from the start; `text` is all there is
    of prompt and answer, the segment's first token included."""
    segment = [text[-1]]
    vector = taps_1TD[:, -1]
    table = model.config.calibration
    sure = 1.0
    while len(segment) < min(room, model.config.max_segment) and confidence < 1:
        stop = model.stop_logits(vector)
        if table is None and Judge.below(float(torch.sigmoid(-stop)), confidence):
            break
        inputs = torch.cat([taps_1TD, model.embed(torch.tensor([segment]))], dim=1)
        outputs, _ = model.micro(inputs, None)
        vector = outputs[:, -1]
        logits = model.micro_logits(vector)
        token = int(model.vocabulary_ids(torch.tensor(Judge.likeliest(logits))))
        if table is not None:
            scale, offset, by_odds, by_lookup = table[len(segment) - 1]
            odds = torch.logit(logits.softmax(-1).amax(-1))
            opinion = slow_opinion(text, segment[1:], token)
            draft_features = by_odds * odds + by_lookup * opinion
            sure *= float(torch.sigmoid(draft_features - scale * stop - offset))
            if Judge.below(sure, confidence):
                break
        segment.append(token)
    return segment


def slow_opinion(text: Sequence[int], said: Sequence[int], token: int) -> float:
    """What followed the last time the longest run at the text's end was there, searched for."""
    for size in range(min(LONGEST, len(text) - 1), 0, -1):
        for place in range(len(text) - 1, size - 1, -1):
            if [*text[place - size : place]] == [*text[len(text) - size :]]:
                period = [*text[place:]]
                follows = [period[index % len(period)] for index in range(len(said) + 1)]
                if follows[:-1] != [*said]:
                    return 0.0
                chance = LOOKUP_ACCURACY[min(size + len(said), len(LOOKUP_ACCURACY) - 1)]
                return chance if follows[-1] == token else -chance
    return 0.0


def slow_trust(model: SmashModel, prompt: Sequence[int], confidence: float, length: int):
    """Segments of a greedy answer in trust mode."""
    segments: list[list[int]] = []
    while (said := sum(map(len, segments))) < length:
        taps = features(model, prompt, segments)
        first = Judge.likeliest(model.base_logits(taps[:, -1]))
        text = [*prompt, *(token for segment in segments for token in segment), first]
        segments.append(slow_segment(model, taps, text, confidence, length - said))
    return segments
