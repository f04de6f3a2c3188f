"""Who attends to whom, and where a slot stands.

transformers 5 reads jumps in `position_ids` as borders of packed sequences when it is given no
mask and no cache.  Merged positions jump, so the mask is always explicit here, built from what
each query may see, with the window of sliding layers counted in entries that it sees.

A slot is one KV entry: a token, or a segment merged into one.  It stands at the position of its
last token: with n_t tokens in slot t,

    position_t = n_0 + ... + n_t - 1,

so positions jump over merged tokens as if they had stayed apart.  Padding is a slot of no tokens.
In a packed row each document starts again at 0.

Shapes: B rows, Q queries, W columns, S slots.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lightstride.errors import ConfigError

AttentionArgument = Tensor | dict[str, Tensor]


def sliding_window(config: PreTrainedConfig) -> int | None:
    """Entries a sliding layer sees, or None if no layer slides."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) else None


def last_entries(sees_BQW: Tensor, window: int) -> Tensor:
    """Of what each query sees, the last `window` entries alone."""
    from_end_BQW = sees_BQW.flip(-1).cumsum(-1).flip(-1)
    return sees_BQW & (from_end_BQW <= window)


def attention_argument(
    sees_BQW: Tensor, config: PreTrainedConfig, dtype: torch.dtype
) -> AttentionArgument:
    """The value that a model of this config takes as `attention_mask`."""
    window = sliding_window(config)
    full = for_attention(sees_BQW, config, dtype)
    if window is None:
        return full
    sliding = for_attention(last_entries(sees_BQW, window), config, dtype)
    if "full_attention" in (getattr(config, "layer_types", None) or ()):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def for_attention(sees_BQW: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    """A mask (B, 1, Q, W): of truth values for sdpa, to be added for eager attention."""
    sees_B1QW = sees_BQW[:, None]
    if config._attn_implementation == "sdpa":
        return sees_B1QW
    least = torch.finfo(dtype).min
    return torch.zeros_like(sees_B1QW, dtype=dtype).masked_fill(~sees_B1QW, least)


def check_attention(config: PreTrainedConfig) -> None:
    """Refuse attention implementations that take no explicit mask."""
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"attention is {config._attn_implementation!r}; decoding needs 'sdpa' or 'eager'"
        )


def slot_positions(
    lengths_BS: Tensor, before_B: Tensor | None = None, documents_BS: Tensor | None = None
) -> Tensor:
    """Position of each slot, shape (B, S).

    `before` is the position of the slot in front (none: -1); `documents` numbers the documents of
    packed rows, ascending from any number.
    """
    last_BS = lengths_BS.cumsum(-1) - 1
    if before_B is not None:
        return last_BS + 1 + before_B[:, None]
    if documents_BS is None:
        return last_BS
    first_BS = last_BS + 1 - lengths_BS
    starts_BS = documents_BS.diff(dim=-1, prepend=documents_BS[:, :1] - 1) != 0
    return last_BS - first_BS.where(starts_BS, first_BS.new_zeros(())).cummax(-1).values
