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
    """What one forward brings: logits of the last columns, and the hidden states asked for."""

    logits_BQV: Tensor
    hidden: tuple[Tensor, ...]
    """For each index asked for, the last columns' hidden states, shape (B, Q, D)."""


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

    def step(self, tokens_B: Tensor) -> Forward:
        """One token a row, committed at once."""
        self.position_B = slot_positions(torch.ones_like(tokens_B)[:, None], self.position_B)[:, 0]
        forward = self.forward(tokens_BQ=tokens_B[:, None], positions_BQ=self.position_B[:, None])
        self.commit(torch.ones_like(tokens_B, dtype=torch.bool)[:, None])
        return forward

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
        if sees_BQQ is not None or self.padded or self.always_masked:
            sees_BQW = self.sees(num_new, width, sees_BQQ, slots_BQ)
            mask = attention_argument(sees_BQW, self.model.config, self.model.dtype)
        output = self.model(
            input_ids=tokens_BQ,
            inputs_embeds=embeddings_BQD,
            position_ids=positions_BQ,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=num_logits,
            output_hidden_states=list(taps) if taps else None,
        )
        hidden = tuple(output.hidden_states[tap][:, -num_logits:] for tap in taps)
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
        sees_BQW[..., : min(known, width)] = self.visible_BW[:, None, :width]
        return sees_BQW.scatter(2, slots_BQ[:, None].expand_as(new_BQQ), new_BQQ)

    def commit(self, visible_BQ: Tensor) -> None:
        """The columns just written count from now on; rows see those marked."""
        self.visible_BW = torch.cat([self.visible_BW, visible_BQ], dim=-1)
        self.cache.used += visible_BQ.shape[1]

    def select_rows(self, rows_N: Tensor) -> None:
        """Keep these rows alone."""
        self.cache.select_rows(rows_N)
        self.visible_BW = self.visible_BW[rows_N]
        self.position_B = self.position_B[rows_N]


def left_pad(
    prompts: Sequence[Sequence[int]], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens with zeros in front, and how many tokens each column holds: 0 or 1."""
    tokens_BP = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths_BP = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
    )
    return tokens_BP, lengths_BP
