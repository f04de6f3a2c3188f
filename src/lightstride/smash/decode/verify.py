"""The mode `verify`: a drafted segment is checked in the forward that merges it.

The columns m_2..m_n are the candidates, the first k tokens merged, and u_1..u_n the tokens as they
are.  u_i sees the cache and u_1..u_i; m_k sees the cache and itself and, where it is a gist,
u_1..u_k.  The logits at u check the draft; of all columns the one that holds the accepted prefix
is kept.  `trust` with gists is the same forward, all of each segment believed.

Shapes: B rows, T taps, D hidden size, Q new columns, K tokens of a segment.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.generate.forward import Forward, Sequences
from lightstride.generate.positions import slot_positions
from lightstride.generate.rows import Row
from lightstride.generate.sampler import Sampler
from lightstride.smash.decode.accept import check
from lightstride.smash.decode.chain_drafter import Drafter
from lightstride.smash.decode.outcome import Checked, pad, pick
from lightstride.smash.model.adapters import merged_at
from lightstride.smash.model.body import SmashBody


class Merging:
    """Steps that leave one KV entry for all tokens they confirm."""

    def __init__(self, model: SmashBody, sampler: Sampler, ends: frozenset[int]) -> None:
        self.model = model
        self.sampler = sampler
        most = model.config.max_segment
        longest = min(sampler.settings.lookup, most)
        self.drafter = Drafter(model, sampler, ends, checked=True, longest=longest)
        self.scratch = 2 * most - 1

    def take_step(
        self, sequences: Sequences, batch: Sequence[Row], taps_BTD: Tensor, first: Sequence[int]
    ) -> Checked:
        """Draft after `first`, check, and keep what is confirmed as one entry a row."""
        draft = self.drafter.draft(batch, taps_BTD, first)
        forward = read_segments(self.model, sequences, draft.segments)
        counts, following = check(self.sampler, batch, draft, forward.logits_BQV)
        accepted = [s[1:count] for s, count in zip(draft.segments, counts, strict=True)]
        kept_BTD = keep_prefixes(self.model, sequences, forward, counts)
        return Checked(accepted, following, kept_BTD, [1] * len(batch))


def read_segments(
    model: SmashBody, sequences: Sequences, segments: Sequence[Sequence[int]]
) -> Forward:
    """The forward over columns m_2..m_n, then u_1..u_n; logits at u alone."""
    tokens_BK, _ = pad(segments, model.device)
    num_rows, width = tokens_BK.shape
    positions_BK = slot_positions(torch.ones_like(tokens_BK), sequences.position_B)
    embeddings_BKD = model.embed(tokens_BK)
    if width == 1:
        return sequences.forward(
            embeddings_BQD=embeddings_BKD, positions_BQ=positions_BK, taps=model.taps
        )
    prefixes = torch.arange(2, width + 1, device=tokens_BK.device)
    merged = model.merge(
        tokens_BK.repeat_interleave(width - 1, dim=0), prefixes.repeat(num_rows)
    ).view(num_rows, width - 1, -1)
    sees_QQ = torch.eye(2 * width - 1, dtype=torch.bool, device=tokens_BK.device)
    sees_QQ[width - 1 :, width - 1 :] = sees_QQ.new_ones(width, width).tril()
    if model.config.gist:
        sees_QQ[: width - 1, width - 1 :] = sees_QQ[width:, width - 1 :]
    is_merged = torch.arange(2 * width - 1, device=tokens_BK.device) < width - 1
    with merged_at(is_merged.expand(num_rows, -1)):
        return sequences.forward(
            embeddings_BQD=torch.cat([merged, embeddings_BKD], dim=1),
            positions_BQ=torch.cat([positions_BK[:, 1:], positions_BK], dim=1),
            sees_BQQ=sees_QQ[None],
            taps=model.taps,
            num_logits=width,
        )


def keep_prefixes(
    model: SmashBody, sequences: Sequences, forward: Forward, counts: Sequence[int]
) -> Tensor:
    """Keep the column of each row's prefix; the features that go on from it, shape (B, T, D)."""
    width = forward.logits_BQV.shape[1]
    counts_B = torch.tensor(counts, device=model.device)
    columns_B = torch.where(counts_B > 1, counts_B - 2, width - 1)
    sequences.keep_one(columns_B)
    sequences.advance(counts_B)
    return pick(forward, width - 2 + counts_B if model.config.gist else columns_B)
