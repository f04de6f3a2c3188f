"""An EAGLE-3 draft head: one Llama layer over the context, fed three of the base's hidden states.

Paper: EAGLE-3 (arXiv 2503.01840).  With x the tokens, h^l the base's hidden state after l blocks,
fc, q, k, v, o and the FFN linear maps and n_e, n_g, n_f, n RMS norms, the head reads at place t

    g_t = fc [h^a_t; h^b_t; h^c_t]
    z   = [n_e(embed x_{t+1}); n_g(s)]        s = g_t, or the head's own last state
    u   = s + o(attention(q z, keys k z, values v z of the places up to t))
    s'  = u + FFN(n_f(u))                     x_{t+2} ~ softmax(W n(s'))

and goes on from s' and the token chosen for x_{t+2} at place t + 1.  W has the rows of a reduced
vocabulary; row i stands for token i + d2t[i].

The layout and the options are those that vLLM, SGLang and llama.cpp share (`graft_files` of the
head: `eagle3_files.py`).  Published heads differ in four norms, which are options here; heads
trained by us leave them all off.

Shapes: B rows, L places, T taps, D hidden size, H query heads, G KV heads, d head size, M draft
vocabulary, S places that are attended to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lightstride.errors import ConfigError
from lightstride.smash.model.modules import rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over whatever is visible: queries (B, H, L, d), the new keys and values (B, G, L, d)
-> (B, H, L, d).  The caller keeps the keys and knows who sees whom."""


@dataclass(frozen=True, kw_only=True)
class Eagle3Config:
    """Sizes and options of a head."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_channels: int
    """Channels of the FFN."""
    vocab_size: int
    """Tokens of the base."""
    draft_vocab_size: int
    """Tokens that the head can propose."""
    taps: tuple[int, ...]
    """Blocks after which the base's hidden states are read, rising."""
    max_positions: int
    """Longest context, as in the base."""
    rope: Mapping[str, object] = field(default_factory=lambda: {"rope_theta": 10_000.0})
    """Rotary embedding, in transformers' words."""
    epsilon: float = 1e-5
    """Of the RMS norms."""
    window: int | None = None
    """How many of the latest places attention sees; None is all."""
    norm_before_residual: bool = False
    """The residual starts from the normed state (published heads of speculators)."""
    norm_before_fc: bool = False
    """One norm over the taps together."""
    fc_norm: bool = False
    """A norm for each tap (EAGLE 3.1)."""
    norm_output: bool = False
    """The normed state is fed back (EAGLE 3.1)."""
    own_embedding: bool = False
    """The head has an embedding of its own instead of the base's."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "num_channels")
        for name in (*sizes, "vocab_size", "draft_vocab_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"draft head: {name} is {getattr(self, name)}, not at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"draft head: {self.num_heads} query heads for {self.num_kv_heads} KV heads; "
                "they must divide"
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ConfigError(
                f"draft head: draft_vocab_size {self.draft_vocab_size} is more than the base's "
                f"{self.vocab_size} tokens"
            )
        if self.head_dim % 2:
            raise ConfigError(f"draft head: head_dim is {self.head_dim}; positions turn pairs")
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 1:
            raise ConfigError(f"draft head: taps are {list(self.taps)}; give rising block numbers")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"draft head: window is {self.window}, not at least 1")


def default_taps(num_blocks: int) -> tuple[int, int, int]:
    """The taps on which the engines agree: after 2 blocks, half of them, all but three."""
    taps = (2, num_blocks // 2, num_blocks - 3)
    if sorted(set(taps)) != list(taps):
        raise ConfigError(
            f"a model of {num_blocks} blocks is too shallow for an EAGLE-3 head; it needs 8"
        )
    return taps


def rotary_of(config: Eagle3Config) -> LlamaRotaryEmbedding:
    """Its rotary positions; raises ConfigError for settings that make none."""
    try:
        with torch.device("cpu"):
            return LlamaRotaryEmbedding(
                LlamaConfig(
                    head_dim=config.head_dim,
                    max_position_embeddings=config.max_positions,
                    rope_parameters=dict(config.rope),
                )
            )
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        told = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigError(f"draft head: its positions cannot be computed: {told}") from error


class Eagle3Head(nn.Module):
    """The head: taps to a state, a token and a state to the next state, a state to logits."""

    d2t_M: Tensor

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        size, taps = config.hidden_size, len(config.taps)

        def norm(width: int = size) -> nn.RMSNorm:
            return nn.RMSNorm(width, eps=config.epsilon)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.taps_norm = norm(taps * size) if config.norm_before_fc else None
        self.tap_norms = nn.ModuleList(norm() for _ in range(taps)) if config.fc_norm else None
        self.fc = linear(taps * size, size)
        self.embedding_norm, self.state_norm, self.ffn_norm, self.norm = (norm() for _ in range(4))
        self.query = linear(2 * size, config.num_heads * config.head_dim)
        self.key = linear(2 * size, config.num_kv_heads * config.head_dim)
        self.value = linear(2 * size, config.num_kv_heads * config.head_dim)
        self.output = linear(config.num_heads * config.head_dim, size)
        self.gate = linear(size, config.num_channels)
        self.up = linear(size, config.num_channels)
        self.down = linear(config.num_channels, size)
        self.lm_head = linear(size, config.draft_vocab_size)
        self.embedding = nn.Embedding(config.vocab_size, size) if config.own_embedding else None
        self.register_buffer("d2t_M", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.rotary = rotary_of(config)

    def tokens_of_rows(self) -> Tensor:
        """The token that each row of the head stands for, shape (M,)."""
        return self.d2t_M + torch.arange(len(self.d2t_M), device=self.d2t_M.device)

    def set_vocabulary(self, tokens_M: Tensor) -> None:
        """Let the rows of the head stand for these tokens, ascending."""
        assert tokens_M.shape == self.d2t_M.shape
        self.d2t_M = tokens_M - torch.arange(len(tokens_M), device=tokens_M.device)

    def set_window(self, window: int) -> None:
        """Let attention see so many of the latest places alone."""
        self.config = replace(self.config, window=window)

    def fuse(self, taps_BLTD: Tensor) -> Tensor:
        """g: one state a place from the base's hidden states, shape (B, L, D)."""
        if self.tap_norms is not None:
            normed = [n(taps_BLTD[..., i, :]) for i, n in enumerate(self.tap_norms)]
            taps_BLTD = torch.stack(normed, dim=-2)
        together = taps_BLTD.flatten(-2)
        if self.taps_norm is not None:
            together = self.taps_norm(together)
        fused_BLD = self.fc(together)
        assert isinstance(fused_BLD, Tensor)
        return fused_BLD

    def angles(self, positions_BL: Tensor) -> Tensor:
        """Cosines and sines of places, shape (2, B, 1, L, d)."""
        cosine_BLd, sine_BLd = self.rotary(self.norm.weight.new_zeros(()), positions_BL)
        return torch.stack([cosine_BLd, sine_BLd])[:, :, None]

    def forward(
        self, embeddings_BLD: Tensor, states_BLD: Tensor, positions_BL: Tensor, attend: Attend
    ) -> Tensor:
        """The next states, shape (B, L, D), from the embeddings of the tokens that follow.

        With `norm_output` they are normed, and `logits` takes them as they are.
        """
        config = self.config
        normed_BLD = self.state_norm(states_BLD)
        inputs = torch.cat([self.embedding_norm(embeddings_BLD), normed_BLD], dim=-1)
        heads = (-1, config.head_dim)
        angles = self.angles(positions_BL)
        attended_BHLd = attend(
            rotate(self.query(inputs).unflatten(-1, heads).transpose(1, 2), angles),
            rotate(self.key(inputs).unflatten(-1, heads).transpose(1, 2), angles),
            self.value(inputs).unflatten(-1, heads).transpose(1, 2),
        )
        residual_BLD = normed_BLD if config.norm_before_residual else states_BLD
        middle_BLD = residual_BLD + self.output(attended_BHLd.transpose(1, 2).flatten(2))
        ffn_BLD = self.ffn_norm(middle_BLD)
        next_BLD = middle_BLD + self.down(nn.functional.silu(self.gate(ffn_BLD)) * self.up(ffn_BLD))
        if config.norm_output:
            next_BLD = self.norm(next_BLD)
        assert isinstance(next_BLD, Tensor)
        return next_BLD

    def normed(self, states_BLD: Tensor) -> Tensor:
        """States as the head's rows take them."""
        normed = states_BLD if self.config.norm_output else self.norm(states_BLD)
        assert isinstance(normed, Tensor)
        return normed

    def logits(self, states_BLD: Tensor) -> Tensor:
        """Logits over the draft vocabulary of the tokens after those just read, (B, L, M)."""
        logits_BLM = self.lm_head(self.normed(states_BLD))
        assert isinstance(logits_BLM, Tensor)
        return logits_BLM
