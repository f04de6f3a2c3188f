"""Where a slot stands: at the position of its last token.

A slot is one KV entry: a token, or a segment merged into one.  With n_t tokens in slot t,

    position_t = n_0 + ... + n_t - 1,

so positions jump over merged tokens as if they had stayed apart.  Padding is a slot of no tokens.
Training, prefill and decoding all call this one function.

Shapes: B rows, S slots.
"""

from torch import Tensor


def slot_positions(lengths_BS: Tensor, before_B: Tensor | None = None) -> Tensor:
    """Position of each slot, shape (B, S); `before` is that of the slot in front (-1: none)."""
    last_BS = lengths_BS.cumsum(-1) - 1
    return last_BS if before_B is None else last_BS + 1 + before_B[:, None]
