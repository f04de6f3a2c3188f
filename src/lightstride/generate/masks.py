"""Who attends to whom, said outright.

transformers 5 reads jumps in `position_ids` as borders of packed sequences when it is given no
mask and no cache.  Merged positions jump, so the mask is always explicit here, built from what
each query may see, with the window of sliding layers counted in entries that it sees.

Shapes: B rows, Q queries, W columns.
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
    """What a model of this config takes as `attention_mask`."""
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
