"""Where a slot stands: at the position of its last token.

A slot is one KV entry: a token, or a segment merged into one.  With n_t tokens in slot t,

    position_t = n_0 + ... + n_t - 1,

so positions jump over merged tokens as if they had stayed apart.  Padding is a slot of no tokens.
In a packed row each document starts again at 0.  Training, prefill and decoding all call this one
function.

Shapes: B rows, S slots.
"""

from torch import Tensor


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
