"""An EAGLE-3 head as a drafter of trees (`levels.py`), with its own KV over the context.

The head reads place t once the token after it is known: of a row with entries x_0 .. x_{n-1} and
the certain token x_n it reads the places up to n - 1, each from the base's features g_t, and goes
on at place n - 1 + j from its own state and a guess of depth j:

    places   0 .. n-1 | guesses of depth 1, 2, ...
    reads    g and x    its own last state and the guess; sees the context and its own branch

Keys of the context stay; those of guesses are forgotten with the step.  Places are read when the
row is next drafted for, all that are missing at once, so steps without drafts cost nothing.

Shapes: B rows, K places to read, W columns, Q new columns, N guesses to go on from, G KV heads,
d head size, T taps, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from lightstride.generate.batch.packed import packed_layers
from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import Budget, Guesses, Kept
from lightstride.smash.drafters.levels import levels_of, propose_levels
from lightstride.smash.model.eagle3 import Attend, Eagle3Head

STEP_COST = 0.07
"""A level in forwards of SmolLM2-135M over one column: by processor time on one thread of a Zen 4,
in bfloat16 and with packed weights, what is read of the context counted in (LOG.md, "micro decoder
and head")."""
MAX_DEPTH = 7
"""Most tokens of a branch; heads are trained on chains of 3 to 7."""
MIN_LEVEL_PROBABILITY = 0.2
"""Grow another level while a row's guesses on it sum to at least this probability."""

Embed = Callable[[Tensor], Tensor]
"""Tokens of any shape -> their embeddings, one more dimension D."""


@dataclass(eq=False)
class HeadContext:
    """What the head has read of a row, and what it is still to read."""

    keys_WGd: Tensor
    values_WGd: Tensor
    tokens: list[int] = field(default_factory=list)
    """Tokens of the places still to be read."""
    states: list[Tensor] = field(default_factory=list)
    """The base's features there, fused: parts of shape (K, D)."""


class Eagle3Tree:
    """Grows guesses for every row by an EAGLE-3 head."""

    reads_context = True

    def __init__(self, head: Eagle3Head, embed: Embed) -> None:
        self.head = head
        self.embed = embed if head.embedding is None else head.embedding
        self.taps: Sequence[int] = head.config.taps
        self.contexts: WeakKeyDictionary[Row, HeadContext] = WeakKeyDictionary()
        """Forgotten with the row."""

    def cost(self, found: Sequence[Guesses]) -> float:
        """The head's layer for each level."""
        return STEP_COST * levels_of(found)

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Note the tokens, and fuse their features."""
        taps_KTD = torch.cat([each.taps_KTD for each in kept])
        with packed_layers(self.head):
            parts = self.head.fuse(taps_KTD[None])[0].split([len(each.tokens) for each in kept])
        config = self.head.config
        for row, each, states_KD in zip(rows, kept, parts, strict=True):
            if row not in self.contexts:
                none = states_KD.new_zeros(0, config.num_kv_heads, config.head_dim)
                self.contexts[row] = HeadContext(none, none)
            self.contexts[row].tokens += each.tokens
            self.contexts[row].states.append(states_KD)

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor | None, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """Guesses of each row."""

        def frontier_of(growing: Sequence[int]) -> HeadFrontier:
            contexts = [self.contexts[rows[row]] for row in growing]
            first = [rows[row].pending[-1] for row in growing]
            return HeadFrontier(self.head, self.embed, contexts, first)

        with packed_layers(self.head):
            return propose_levels(
                rows, budgets, frontier_of, last=MAX_DEPTH, least_hits=MIN_LEVEL_PROBABILITY
            )


class HeadFrontier:
    """The head's state behind each guess that trees go on from, and the keys that it may see."""

    def __init__(
        self, head: Eagle3Head, embed: Embed, contexts: Sequence[HeadContext], first: Sequence[int]
    ) -> None:
        self.head = head
        self.embed = embed
        self.keys_BGWd = pad_sequence([c.keys_WGd for c in contexts], True).transpose(1, 2)
        self.values_BGWd = pad_sequence([c.values_WGd for c in contexts], True).transpose(1, 2)
        lengths_B1 = self.ids([[len(each.keys_WGd)] for each in contexts])
        self.places_BW = torch.arange(self.keys_BGWd.shape[2], device=head.d2t_M.device).expand(
            len(contexts), -1
        )
        self.context_BW = self.places_BW < lengths_B1
        """Columns that all guesses of a row see."""
        self.tree_rows = list(range(len(contexts)))
        """The row of each guess."""
        self.branches: list[list[int]] = [[] for _ in contexts]
        """Columns of each guess's own branch."""
        self.states_ND = self.read_context(contexts, first, lengths_B1)

    def ids(self, values: Sequence[object]) -> Tensor:
        """Whole numbers on the head's device."""
        return torch.tensor(values, device=self.head.d2t_M.device)

    def read_context(
        self, contexts: Sequence[HeadContext], first: Sequence[int], lengths_B1: Tensor
    ) -> Tensor:
        """Read what is missing of each row; the states of their last places, (B, D)."""
        following = [self.ids([*c.tokens[1:], x]) for c, x in zip(contexts, first, strict=True)]
        counts = [len(each) for each in following]
        states_BQD = pad_sequence([torch.cat(each.states) for each in contexts], True)
        steps_Q = torch.arange(max(counts), device=lengths_B1.device)
        sees_BQQ = (steps_Q[:, None] >= steps_Q).expand(len(contexts), -1, -1)
        sees_BQW = self.context_BW[:, None].expand(-1, len(steps_Q), -1)
        next_BQD = self.read(
            self.embed(pad_sequence(following, True)),
            states_BQD,
            lengths_B1 + steps_Q,
            torch.cat([sees_BQW, sees_BQQ], dim=-1),
        )
        counts_B = self.ids(counts)
        self.context_BW = torch.cat([self.context_BW, steps_Q < counts_B[:, None]], dim=-1)
        self.last_places_B = lengths_B1[:, 0] + counts_B - 1
        for index, (each, count) in enumerate(zip(contexts, counts, strict=True)):
            start = self.keys_BGWd.shape[2] - max(counts)
            new = slice(start, start + count)
            each.keys_WGd = torch.cat(
                [each.keys_WGd, self.keys_BGWd[index, :, new].transpose(0, 1)]
            )
            each.values_WGd = torch.cat(
                [each.values_WGd, self.values_BGWd[index, :, new].transpose(0, 1)]
            )
            each.tokens, each.states = [], []
        return next_BQD[self.tree_rows, counts_B - 1]

    def likeliest(self, width: int) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens that the head finds likeliest, best first."""
        probabilities_NM = self.head.logits(self.states_ND).float().softmax(-1)
        top_NK, ids_NK = probabilities_NM.topk(min(width, probabilities_NM.shape[-1]))
        return top_NK.tolist(), self.head.tokens_of_rows()[ids_NK].tolist()

    def advance(self, sources: Sequence[int], tokens: Sequence[int]) -> None:
        """Read a guess behind each source, at the place after it."""
        self.tree_rows = [self.tree_rows[source] for source in sources]
        places = [self.tree_rows[:index].count(row) for index, row in enumerate(self.tree_rows)]
        num_rows, num_old = self.context_BW.shape
        where = self.ids(self.tree_rows), self.ids(places)
        width = max(places) + 1
        embeddings_ND = self.embed(self.ids(tokens))
        blank_BQD = embeddings_ND.new_zeros(num_rows, width, embeddings_ND.shape[-1])
        sees_BQW = self.context_BW[:, None].repeat(1, width, 1)
        itself_QQ = torch.eye(width, dtype=torch.bool, device=sees_BQW.device)
        sees_BQW = torch.cat([sees_BQW, itself_QQ.expand(num_rows, -1, -1)], dim=-1)
        for row, place, source in zip(self.tree_rows, places, sources, strict=True):
            sees_BQW[row, place, self.branches[source]] = True
        self.branches = [
            [*self.branches[source], num_old + place]
            for source, place in zip(sources, places, strict=True)
        ]
        depth = len(self.branches[0])
        next_BQD = self.read(
            blank_BQD.index_put(where, embeddings_ND),
            blank_BQD.index_put(where, self.states_ND[self.ids(sources)]),
            (self.last_places_B[:, None] + depth).expand(-1, width),
            sees_BQW,
        )
        hidden_BQ = torch.zeros(num_rows, width, dtype=torch.bool, device=sees_BQW.device)
        self.context_BW = torch.cat([self.context_BW, hidden_BQ], dim=-1)
        self.states_ND = next_BQD[where]

    def read(
        self, embeddings_BQD: Tensor, states_BQD: Tensor, places_BQ: Tensor, sees_BQW: Tensor
    ) -> Tensor:
        """The next states; `sees` are the columns there were and, behind them, the new ones."""
        self.places_BW = torch.cat([self.places_BW, places_BQ], dim=-1)
        window = self.head.config.window
        if window is not None:
            sees_BQW = sees_BQW & (places_BQ[..., None] - self.places_BW[:, None] < window)
        next_BQD = self.head(embeddings_BQD, states_BQD, places_BQ, self.attending(sees_BQW))
        assert isinstance(next_BQD, Tensor)
        return next_BQD

    def attending(self, sees_BQW: Tensor) -> Attend:
        """Attention that keeps the new keys and values behind those there were."""

        def attend(query_BHQd: Tensor, key_BGQd: Tensor, value_BGQd: Tensor) -> Tensor:
            self.keys_BGWd = torch.cat([self.keys_BGWd, key_BGQd], dim=2)
            self.values_BGWd = torch.cat([self.values_BGWd, value_BGQd], dim=2)
            return scaled_dot_product_attention(
                query_BHQd,
                self.keys_BGWd,
                self.values_BGWd,
                attn_mask=sees_BQW[:, None],
                enable_gqa=True,
            )

        return attend
