"""A toy deep enough for an EAGLE-3 head, and random heads for it in each published kind."""

import torch
from transformers import PreTrainedModel

from helpers.smash_toys import sharp
from helpers.toys import tiny_llama
from lightstride.models.families.registry import adapter_for
from lightstride.models.rebuild import rebuilt
from lightstride.models.shapes import AttentionShape, FFNShape
from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head, default_taps

BLOCKS = 8
DRAFTED = (3, 7, 11, 65, 66, 77, 140, 150, 201, 250)
KINDS = {
    "as trained here": {},
    "speculators": {"norm_before_residual": True},
    "norm before fc": {"norm_before_fc": True},
    "EAGLE 3.1": {"fc_norm": True, "norm_output": True},
    "own embedding": {"own_embedding": True},
    "window": {"window": 4},
    "other taps": {"taps": (1, 3, 6)},
}


def deep_toy() -> PreTrainedModel:
    """A sharp Llama of 8 blocks."""
    return sharp(tiny_llama(num_layers=BLOCKS, tied=False))


def deep_uneven() -> PreTrainedModel:
    """The same, whose last block has lost heads and channels, as after pruning."""
    model = deep_toy()
    adapter = adapter_for(model.config)
    blocks = adapter.blocks(model)
    attention, ffn = adapter.read(blocks[7], "attention"), adapter.read(blocks[7], "ffn")
    half = {
        "query": attention["query"][:16],
        "key": attention["key"][:8],
        "value": attention["value"][:8],
        "output": attention["output"][:, :16],
    }
    adapter.write(blocks[7], "attention", half, AttentionShape(1, 2))
    fewer = {"gate": ffn["gate"][:20], "up": ffn["up"][:20], "down": ffn["down"][:, :20]}
    adapter.write(blocks[7], "ffn", fewer, FFNShape(20))
    return rebuilt(model)


def random_head(seed: int = 0, **changes: object) -> Eagle3Head:
    """A head of random weights that drafts a few tokens, those of a sharp toy among them."""
    values = {
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "num_channels": 48,
        "vocab_size": 260,
        "draft_vocab_size": len(DRAFTED),
        "taps": default_taps(BLOCKS),
        "max_positions": 128,
        **changes,
    }
    torch.manual_seed(seed)
    head = Eagle3Head(Eagle3Config(**values))  # type: ignore[arg-type]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head.set_vocabulary(torch.tensor(DRAFTED))
    return head.eval().requires_grad_(False)
