"""Configuration of a smashed model: sizes of the grafts, and the base that they belong to.

The default is thin, one micro layer, a linear stop head and a reduced micro vocabulary, because
the micro path runs once per token: with the published sizes, 2 tokens a step cannot be more than
1.39 times as fast on a 1 B model.  Thin grafts only draft, published ones merge too.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from transformers import PreTrainedConfig

from lightstride.errors import ModelError
from lightstride.generate import Mode
from lightstride.models.shapes import Geometry
from lightstride.smash.model.config_file import of_today

PAPER_MICRO_LAYERS = 4
PAPER_EMBEDDER_HEADS = 64
PAPER_MAX_SEGMENT = 4
THIN_MICRO_VOCABULARY = 8192
NUM_TAPS = 4
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


class SmashConfig(PreTrainedConfig):
    """Sizes of the grafts and identity of the base; sizes shared with the base are its own."""

    model_type = "lightstride_smash"

    base: str = ""
    """Where the base is: a hub id, a built-in name, or a folder (relative to this checkpoint)."""
    base_fingerprint: str = ""
    """Fingerprint of the base's weights; another base is refused."""
    base_model_type: str = ""
    hidden_size: int = 64
    vocab_size: int = 256
    num_hidden_layers: int = 2
    max_position_embeddings: int | None = None
    max_segment: int = PAPER_MAX_SEGMENT
    """Most tokens in one macro step."""
    taps: list[int] | None = None
    """Which of the base's hidden states the micro decoder sees (0 is the embedding)."""
    embedder_heads: int | None = None
    """Heads of the embedder, which merges the tokens of a step into one column; None: there is no
    embedder, and nothing is merged."""
    micro_layers: int = 1
    micro_heads: int = 4
    micro_kv_heads: int = 4
    micro_head_dim: int = 16
    micro_channels: int = 128
    micro_rope: dict[str, Any] | None = None
    """Rotary parameters of the micro decoder, as transformers writes them; None is plain."""
    micro_norm: bool = True
    """Whether the micro decoder has a final norm (the published one has none)."""
    micro_epsilon: float = 1e-5
    micro_vocab_size: int | None = None
    """Tokens that micro steps can draft; None is all."""
    stop_head: Literal["linear", "mlp"] = "linear"
    calibration: list[list[float]] | None = None
    """Scale and offset of the stop head's logit at each place of a segment, and the weights of
    what else speaks for a drafted token (`confidence.py`).

    With it, `confidence` bounds the probability that all tokens drafted so far are the base's own;
    without it, as published, the probability of going on at each token alone."""
    mode: Mode = "lossless"
    """Default decoding mode."""

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.taps is None:
            self.taps = quarters(self.num_hidden_layers)
        if self.micro_rope is None:
            self.micro_rope = dict(PLAIN_ROPE)
        checks = {
            "max_segment": (self.max_segment >= 1, "at least 1"),
            "taps": (
                bool(self.taps)
                and self.taps == sorted(set(self.taps))
                and self.taps[0] >= 0
                and self.taps[-1] == self.num_hidden_layers,
                f"ascending and end with the last, {self.num_hidden_layers}",
            ),
            "embedder_heads": (
                self.embedder_heads is None or self.hidden_size % self.embedder_heads == 0,
                "None or a divisor of D",
            ),
            "micro_layers": (self.micro_layers >= 1, "at least 1"),
            "micro_heads": (self.micro_heads % self.micro_kv_heads == 0, "a multiple of KV heads"),
            "calibration": (
                self.calibration is None or len(self.calibration) >= self.max_segment - 1,
                "None or have a pair for each place",
            ),
            "stop_head": (self.stop_head in ("linear", "mlp"), "'linear' or 'mlp'"),
            "mode": (self.mode in self.modes, f"one of {', '.join(self.modes)}"),
        }
        for name, (is_allowed, wanted) in checks.items():
            if not is_allowed:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be {wanted}")

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: object) -> Self:
        """What a config.json says, also one of grafts that merged otherwise."""
        found: Self = super().from_dict(of_today(config_dict), **kwargs)
        return found

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The decoding modes of these grafts."""
        checked: tuple[Mode, ...] = ("lossless", "ar")
        return checked if self.embedder_heads is None else (*checked, "trust")

    @classmethod
    def thin(
        cls, base: PreTrainedConfig, geometry: Geometry, max_segment: int = PAPER_MAX_SEGMENT
    ) -> Self:
        """The default grafts for this base."""
        small = THIN_MICRO_VOCABULARY
        thin: dict[str, Any] = {
            "micro_layers": 1,
            "micro_vocab_size": small if geometry.vocab_size > small else None,
            "stop_head": "linear",
        }
        return cls(**sizes(base, geometry), **thin, max_segment=max_segment)

    @classmethod
    def paper(
        cls, base: PreTrainedConfig, geometry: Geometry, max_segment: int = PAPER_MAX_SEGMENT
    ) -> Self:
        """The published grafts for this base (HAMburger, arXiv 2505.20438)."""
        paper: dict[str, Any] = {
            "embedder_heads": divisor(geometry.hidden_size, PAPER_EMBEDDER_HEADS),
            "micro_layers": PAPER_MICRO_LAYERS,
            "micro_norm": False,
            "micro_vocab_size": None,
            "stop_head": "mlp",
            "mode": "trust",
        }
        return cls(**sizes(base, geometry), **paper, max_segment=max_segment)


def last_whole_block(geometry: Geometry) -> int:
    """Number of the last block that has an attention: pruning may have left some without."""
    return max(i for i, shape in enumerate(geometry.attention) if shape.num_heads)


def sizes(base: PreTrainedConfig, geometry: Geometry) -> dict[str, Any]:
    """Fields that the grafts share with the base: its sizes, and those of its last block."""
    last = last_whole_block(geometry)
    attention, ffn = geometry.attention[last], geometry.ffn[last]
    rope = getattr(base, "rope_parameters", None)
    is_known = isinstance(rope, dict) and rope.get("rope_type") in ("default", "llama3")
    return {
        "base_model_type": base.model_type,
        "hidden_size": geometry.hidden_size,
        "vocab_size": geometry.vocab_size,
        "num_hidden_layers": geometry.num_blocks,
        "max_position_embeddings": getattr(base, "max_position_embeddings", None),
        "micro_heads": attention.num_heads,
        "micro_kv_heads": attention.num_kv_heads,
        "micro_head_dim": geometry.head_dim,
        "micro_channels": ffn.num_channels,
        "micro_rope": rope if is_known else None,
        "micro_epsilon": getattr(base, "rms_norm_eps", 1e-5),
        "tie_word_embeddings": False,
        **{name: getattr(base, name, None) for name in SPECIAL_TOKENS},
    }


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def quarters(num_layers: int) -> list[int]:
    """Indices of the hidden states at quarters of the depth, the last one included."""
    return sorted({-(-num_layers * part // NUM_TAPS) for part in range(1, NUM_TAPS + 1)})


def divisor(size: int, wanted: int) -> int:
    """The largest divisor of `size` that is at most `wanted`."""
    return max(d for d in range(1, wanted + 1) if size % d == 0)
