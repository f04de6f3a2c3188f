"""A batch of sequences inside a model: one forward, and nothing around it.

transformers' own loop costs more than a small model's forward (masks, cache, checks).  This is
the lean step that plain and smashed decoders share, so that comparing them is fair.

Rows are padded on the left.  A forward may write scratch entries (drafts); `commit` makes them
count.  In the plain case - no padding, one new column, no sliding window - the model is given no
mask: with a cache it then attends to all columns there are, which is what is meant.

Shapes: B rows, P prompt columns, Q new columns, W columns, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.generate.cache import SlotCache, Storage
from lightstride.generate.masks import attention_argument, check_attention, sliding_window
from lightstride.generate.positions import slot_positions


@dataclass(frozen=True)
class Forward:
    """What one forward brings: logits of its last columns, and the hidden states asked for."""

    logits_BQV: Tensor
    hidden: tuple[Tensor, ...]
    """For each index asked for, the hidden states of all new columns, shape (B, Q, D)."""


class Sequences:
    """Prompts in a model, growing by what is committed."""

    def __init__(self, model: PreTrainedModel, storage: Storage, capacity: int) -> None:
        check_attention(model.config)
        self.model = model
        self.cache = SlotCache(storage, capacity)
        self.always_masked = sliding_window(model.config) is not None
        self.padded = False

    def prefill(self, prompts: Sequence[Sequence[int]], taps: Sequence[int] = ()) -> Forward:
        """Read the prompts; what comes back is of their last tokens (Q = 1)."""
        width = max(map(len, prompts))
        tokens_BP, lengths_BP = left_pad(prompts, width, self.model.device)
        self.padded = any(len(prompt) < width for prompt in prompts)
        positions_BP = slot_positions(lengths_BP)
        self.position_B = positions_BP[:, -1].clone()
        self.visible_BW = torch.zeros((len(prompts), 0), dtype=torch.bool, device=self.model.device)
        sees_BPP = None
        if self.padded or self.always_masked:
            causal_PP = torch.ones(width, width, device=self.model.device).tril().bool()
            itself_PP = torch.eye(width, device=self.model.device).bool()
            sees_BPP = (causal_PP & lengths_BP.bool()[:, None]) | itself_PP
        forward = self.forward(
            tokens_BQ=tokens_BP,
            positions_BQ=positions_BP.clamp(min=0),
            sees_BQQ=sees_BPP,
            taps=taps,
        )
        self.commit(lengths_BP.bool())
        return forward

    def step(
        self,
        tokens_B: Tensor | None = None,
        *,
        embeddings_BD: Tensor | None = None,
        lengths_B: Tensor | None = None,
        taps: Sequence[int] = (),
    ) -> Forward:
        """One slot a row, committed at once: a token, or an embedding of `lengths` tokens."""
        if lengths_B is None:
            lengths_B = torch.ones_like(self.position_B)
        self.advance(lengths_B)
        forward = self.forward(
            tokens_BQ=None if tokens_B is None else tokens_B[:, None],
            embeddings_BQD=None if embeddings_BD is None else embeddings_BD[:, None],
            positions_BQ=self.position_B[:, None],
            taps=taps,
        )
        self.commit((lengths_B > 0)[:, None])
        return forward

    def advance(self, lengths_B: Tensor) -> None:
        """Note that each row's last slot now ends so many tokens later."""
        self.position_B = slot_positions(lengths_B[:, None], self.position_B)[:, 0]

    def forward(
        self,
        *,
        positions_BQ: Tensor,
        tokens_BQ: Tensor | None = None,
        embeddings_BQD: Tensor | None = None,
        sees_BQQ: Tensor | None = None,
        slots_BQ: Tensor | None = None,
        taps: Sequence[int] = (),
        num_logits: int = 1,
    ) -> Forward:
        """Run new columns, which stay scratch until committed.

        `sees_BQQ` says which new columns see which (None: the ones before and itself);
        `slots_BQ` where they are written, row by row (None: right behind the used columns).
        """
        num_new = positions_BQ.shape[1]
        used = self.cache.used
        width = used + num_new if slots_BQ is None else int(slots_BQ.max()) + 1
        self.cache.place(num_new, slots_BQ, width)
        mask = None
        is_plain = slots_BQ is None and (num_new == 1 or used == 0)
        if self.padded or self.always_masked or sees_BQQ is not None or not is_plain:
            sees_BQW = self.sees(num_new, width, sees_BQQ, slots_BQ)
            mask = attention_argument(sees_BQW, self.model.config, self.model.dtype)
        # By index: of a slice torch multiplies row by row, each with a copy of the head of its own.
        last_K = torch.arange(num_new - num_logits, num_new, device=positions_BQ.device)
        output = self.model(
            input_ids=tokens_BQ,
            inputs_embeds=embeddings_BQD,
            position_ids=positions_BQ,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last_K,
            output_hidden_states=list(taps) if taps else None,
        )
        hidden = tuple(output.hidden_states[tap] for tap in taps)
        return Forward(output.logits, hidden)

    def sees(
        self, num_new: int, width: int, sees_BQQ: Tensor | None, slots_BQ: Tensor | None
    ) -> Tensor:
        """Which columns each new one attends to, shape (B, Q, W)."""
        num_rows, known = self.visible_BW.shape
        if sees_BQQ is None:
            ones_QQ = torch.ones(num_new, num_new, device=self.visible_BW.device)
            sees_BQQ = ones_QQ.tril().bool()
        new_BQQ = sees_BQQ.expand(num_rows, num_new, num_new)
        if slots_BQ is None:
            old_BQW = self.visible_BW[:, None].expand(num_rows, num_new, known)
            return torch.cat([old_BQW, new_BQQ], dim=-1)
        sees_BQW = new_BQQ.new_zeros(num_rows, num_new, width)
        sees_BQW[..., :known] = self.visible_BW[:, None]
        return sees_BQW.scatter(2, slots_BQ[:, None].expand_as(new_BQQ), new_BQQ)

    def commit(self, visible_BQ: Tensor) -> None:
        """The columns just written count from now on; rows see those marked."""
        self.visible_BW = torch.cat([self.visible_BW, visible_BQ], dim=-1)
        self.cache.used += visible_BQ.shape[1]
        self.used_B = torch.full_like(self.position_B, self.cache.used)

    def commit_rows(self, slots_BQ: Tensor, kept_BQ: Tensor) -> None:
        """Of columns written row by row, those marked count from now on."""
        width = int(slots_BQ.max()) + 1
        visible_BW = self.visible_BW.new_zeros(len(slots_BQ), width)
        visible_BW[:, : self.visible_BW.shape[1]] = self.visible_BW
        self.visible_BW = visible_BW.scatter(1, slots_BQ, kept_BQ)
        self.used_B = self.used_B + kept_BQ.sum(-1)
        self.cache.used = int(self.used_B.max())
        self.visible_BW = self.visible_BW[:, : self.cache.used]

    def keep_paths(self, columns_BK: Tensor, lengths_B: Tensor) -> None:
        """Of columns written row by row, each row keeps those of a path, ascending, in its order.

        `columns_BK` counts from the row's first new column; behind `lengths` it is ignored.
        """
        places_K = torch.arange(columns_BK.shape[1], device=columns_BK.device)
        within_BK = places_K < lengths_B[:, None]
        target_BK = self.used_B[:, None] + places_K
        columns_BK = torch.where(within_BK, columns_BK, places_K)
        if bool((columns_BK != places_K).any()):
            self.cache.move(self.used_B[:, None] + columns_BK, target_BK)
        self.commit_rows(target_BK, within_BK)

    def keep_one(self, columns_B: Tensor) -> None:
        """Of the columns just written, each row keeps one; the others are forgotten."""
        target_B1 = torch.full_like(columns_B, self.cache.used)[:, None]
        self.cache.move(target_B1 + columns_B[:, None], target_B1)
        self.commit(torch.ones_like(columns_B, dtype=torch.bool)[:, None])

    def select_rows(self, rows_N: Tensor) -> None:
        """Keep these rows alone."""
        self.cache.select_rows(rows_N)
        self.position_B = self.position_B[rows_N]
        self.used_B = self.used_B[rows_N]
        self.cache.used = int(self.used_B.max())
        self.visible_BW = self.visible_BW[rows_N, : self.cache.used]


def left_pad(
    prompts: Sequence[Sequence[int]], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens with zeros in front, and how many tokens each column holds: 0 or 1."""
    tokens_BP = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths_BP = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
    )
    return tokens_BP, lengths_BP
