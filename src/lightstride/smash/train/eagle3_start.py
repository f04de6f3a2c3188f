"""A new EAGLE-3 head on a base, ready to learn.

Heads, head size, channels and rotary positions are the base's, of its widest blocks where they
differ.  The layer begins as the base's last block of that width does, reading the deepest tap
alone; of the input's two halves it reads the state as that block does, and the embedding hardly.

Shapes: D hidden size, T taps, V vocabulary, M draft vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.head_logits import head_inputs
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Kind
from lightstride.smash.data.examples import Example
from lightstride.smash.model.body import choose_vocabulary
from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head, default_taps
from lightstride.smash.train.initialize import copy, hidden_norms, is_norm, norm_scale

SPREAD = 0.02
"""Standard deviation of what does not come from the base."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Scalings of rotary positions that all readers of heads know."""
DEFAULT_CONTEXT = 2048
"""Positions of a base that names none."""


def new_head(
    base: PreTrainedModel,
    examples: Sequence[Example],
    *,
    draft_vocab: int,
    always: Sequence[int],
    window: int | None = None,
    seed: int = 0,
) -> Eagle3Head:
    """A head in fp32 for the tokens that are most frequent in the answers, `always` among them.

    Raises ModelError for a base whose logits no head makes: with a bias, or capped.
    """
    geometry = adapter_for(base.config).geometry(base.config)
    output = base.get_output_embeddings()
    if output.bias is not None:
        raise ModelError("the base adds a bias to its logits, which no EAGLE-3 head has")
    config = head_config(base.config, geometry, min(draft_vocab, geometry.vocab_size), window)
    counts_V = torch.zeros(geometry.vocab_size, dtype=torch.long)
    for example in examples:
        counts_V += torch.bincount(example.answer_A, minlength=geometry.vocab_size)
    torch.manual_seed(seed)
    head = Eagle3Head(config)
    head.set_vocabulary(choose_vocabulary(counts_V, config.draft_vocab_size, always))
    rows_MD = output.weight.detach().float().cpu()[head.tokens_of_rows()]
    with torch.no_grad():
        begin_like_the_base(head, base, geometry)
        head.lm_head.weight.copy_(head_inputs(base.config, rows_MD))
    return head.to(base.device)


def head_config(
    base: PreTrainedConfig, geometry: Geometry, draft_vocab: int, window: int | None
) -> Eagle3Config:
    """Sizes of a head for this base."""
    attention, ffn = widest(geometry)
    return Eagle3Config(
        hidden_size=geometry.hidden_size,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=geometry.head_dim,
        num_channels=ffn.num_channels,
        vocab_size=geometry.vocab_size,
        draft_vocab_size=draft_vocab,
        taps=default_taps(geometry.num_blocks),
        max_positions=getattr(base, "max_position_embeddings", None) or DEFAULT_CONTEXT,
        rope=rope_of(base),
        epsilon=getattr(base, "rms_norm_eps", 1e-5),
        window=window,
    )


def widest(geometry: Geometry) -> tuple[AttentionShape, FFNShape]:
    """The widest attention, by its query heads, and the widest FFN of a model."""
    attention = max(geometry.attention, key=lambda shape: (shape.num_heads, shape.num_kv_heads))
    return attention, max(geometry.ffn)


def rope_of(base: PreTrainedConfig) -> Mapping[str, Any]:
    """The base's rotary parameters; plain ones where heads' readers do not know its scaling."""
    rope = getattr(base, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type") in ROPE_TYPES and "partial_rotary_factor" not in rope:
        return dict(rope)
    return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}


def begin_like_the_base(head: Eagle3Head, base: PreTrainedModel, geometry: Geometry) -> None:
    """Fill the head's weights, all but its rows."""
    adapter, size = adapter_for(base.config), geometry.hidden_size
    for module in head.modules():
        if isinstance(module, nn.Linear) and module is not head.lm_head:
            nn.init.normal_(module.weight, std=SPREAD)
    head.fc.weight[:, -size:] += torch.eye(size)
    attention, ffn = widest(geometry)
    blocks = adapter.blocks(base)
    kinds: tuple[tuple[Kind, int], ...] = (
        ("attention", last_index(geometry.attention, attention)),
        ("ffn", last_index(geometry.ffn, ffn)),
    )
    for kind, index in kinds:
        for name, weight in adapter.read(blocks[index], kind).items():
            layer = getattr(head, name, None)
            if isinstance(layer, nn.Linear):
                copy(layer.weight[:, -weight.shape[1] :], weight.cpu())
        norms = hidden_norms(blocks[index], size)
        if len(norms) == 2:
            target = head.state_norm if kind == "attention" else head.ffn_norm
            copy(target.weight, norms[0 if kind == "attention" else 1].cpu())
    finals = [norm for norm in adapter.decoder(base).children() if is_norm(norm, size)]
    if len(finals) == 1:
        copy(head.norm.weight, norm_scale(finals[0]).cpu())


def last_index(shapes: Sequence[object], wanted: object) -> int:
    """Number of the last block of this shape."""
    return max(index for index, shape in enumerate(shapes) if shape == wanted)


def learning_parts(head: Eagle3Head) -> Eagle3Head:
    """The head with everything learning but its rows and an embedding of its own."""
    head.float().train().requires_grad_(True)
    head.lm_head.requires_grad_(False)
    if head.embedding is not None:
        head.embedding.requires_grad_(False)
    return head
