"""Sites, shapes, kept units and their costs: the vocabulary of pruning, without torch.

A *site* is one prunable place of one block: its attention or its feed-forward part (FFN).
A *shape* is how wide a site is.  *Kept* says which units of the dense site stay.
Attention loses whole KV groups (a K and a V head with all their query heads) and the same
number of query heads from every kept group, so what is left is always a regular GQA layer; or it
is lost whole.
An FFN of several experts, which a router chooses from, is one site: its channels are those of all
experts, one expert after the other.  It loses channels of each, and experts whose channels are all
lost go with their rows of the router.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Self

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True, order=True)
class Site:
    """One prunable place, written `"12.attention"`. Sites sort in the order they are computed."""

    block: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.block}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read back what `str` wrote; raises ValueError on anything else."""
        block, _, kind = text.partition(".")
        if kind == "attention":
            return cls(int(block), "attention")
        if kind == "ffn":
            return cls(int(block), "ffn")
        raise ValueError(f"not a site: {text!r}")


@dataclass(frozen=True, order=True)
class AttentionShape:
    """Widths of a grouped-query attention: KV heads, and query heads for each of them."""

    num_kv_heads: int
    queries_per_group: int

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.queries_per_group


@dataclass(frozen=True, order=True)
class FFNShape:
    """Width of a feed-forward part."""

    num_channels: int
    """Of all experts together."""
    experts: tuple[int, ...] = field(default=(), compare=False)
    """Channels of each expert that is there, none without experts.

    No part of what is compared: a search asks for a width, and losses say which experts have it.
    """


Shape = AttentionShape | FFNShape
NO_ATTENTION = AttentionShape(0, 0)
"""Of a block that has lost its attention, with the norm before it and every bias."""


@dataclass(frozen=True)
class AttentionKept:
    """Which units of a dense attention stay: KV groups, and query heads inside each of them.

    `groups` ascending; `queries[i]` are the ascending indices, inside group `groups[i]`, of the
    query heads that stay; all `queries[i]` are equally long.  Without groups nothing stays.
    """

    groups: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> AttentionShape:
        return (
            AttentionShape(len(self.groups), len(self.queries[0])) if self.groups else NO_ATTENTION
        )

    def heads(self, queries_per_group: int) -> tuple[int, ...]:
        """Dense indices of the kept query heads, group by group."""
        return tuple(
            group * queries_per_group + query
            for group, queries in zip(self.groups, self.queries, strict=True)
            for query in queries
        )


@dataclass(frozen=True)
class FFNKept:
    """Which intermediate channels of a dense FFN stay, ascending."""

    channels: tuple[int, ...]
    expert_width: int = 0
    """Channels of each dense expert; 0 without experts."""

    @property
    def widths(self) -> dict[int, int]:
        """How many channels each expert that stays has, by its number; empty without experts."""
        width = self.expert_width
        return dict(Counter(channel // width for channel in self.channels)) if width else {}

    @property
    def shape(self) -> FFNShape:
        return FFNShape(len(self.channels), tuple(self.widths.values()))


Kept = AttentionKept | FFNKept


def keep_all(shape: Shape) -> Kept:
    """Everything of a dense site stays."""
    if isinstance(shape, FFNShape):
        return FFNKept(tuple(range(shape.num_channels)), max(shape.experts, default=0))
    queries = tuple(range(shape.queries_per_group))
    return AttentionKept(tuple(range(shape.num_kv_heads)), (queries,) * shape.num_kv_heads)


def shape_text(shape: Shape) -> str:
    """A shape as written on disk: `"3x2"` (KV heads x queries each) or `"1152"`."""
    if isinstance(shape, FFNShape):
        return str(shape.num_channels)
    return f"{shape.num_kv_heads}x{shape.queries_per_group}"


def parse_shape(text: str) -> Shape:
    """Read back what `shape_text` wrote; raises ValueError on anything else."""
    if "x" not in text:
        return FFNShape(int(text))
    groups, queries = text.split("x")
    return AttentionShape(int(groups), int(queries))


def _mask(units: tuple[int, ...]) -> str:
    return f"{sum(1 << unit for unit in units):x}"


def _units(mask: str) -> tuple[int, ...]:
    bits = int(mask, 16)
    return tuple(unit for unit in range(bits.bit_length()) if bits >> unit & 1)


def kept_json(kept: Kept) -> object:
    """Kept units as hex bit masks: one of channels, or one of groups and one for each group.

    A mask of experts' channels is followed by how many each dense expert has: `"f0ff/8"`.
    """
    if isinstance(kept, FFNKept):
        of = f"/{kept.expert_width}" if kept.expert_width else ""
        return _mask(kept.channels) + of
    return [_mask(kept.groups), *(_mask(queries) for queries in kept.queries)]


def parse_kept(entry: object) -> Kept:
    """Read back what `kept_json` wrote."""
    if isinstance(entry, str):
        mask, _, width = entry.partition("/")
        return FFNKept(_units(mask), int(width or 0))
    assert isinstance(entry, list)
    return AttentionKept(_units(entry[0]), tuple(_units(mask) for mask in entry[1:]))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a model as it stands, and what each unit costs in parameters (biases included)."""

    family: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    tied_head: bool
    attention: tuple[AttentionShape, ...]
    """Widths of each block's attention."""
    ffn: tuple[FFNShape, ...]
    """Widths of each block's FFN."""
    query_head_parameters: int
    """One query head: its rows of q and its columns of o."""
    kv_head_parameters: int
    """One KV head: its rows of k and of v."""
    channel_parameters: int
    """One FFN channel: its rows of gate and up and its column of down."""
    attention_fixed: int = 0
    """Parameters of an attention that no cut removes (the bias of o)."""
    ffn_fixed: int = 0
    """Parameters of an FFN that no cut removes (the bias of down)."""
    experts_per_token: int = 1
    """Experts that a router sends each token to."""

    @property
    def num_blocks(self) -> int:
        return len(self.attention)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order they are computed."""
        return tuple(Site(block, kind) for block in range(self.num_blocks) for kind in KINDS)

    def shape(self, site: Site) -> Shape:
        """Dense shape of a site."""
        shapes = self.attention if site.kind == "attention" else self.ffn
        return shapes[site.block]

    def num_inputs(self, shape: Shape) -> int:
        """Inputs of the output weights of a site of this shape."""
        if isinstance(shape, FFNShape):
            return shape.num_channels
        return shape.num_heads * self.head_dim

    def parameters(self, shape: Shape) -> int:
        """Parameters of one site of this shape, exactly."""
        if isinstance(shape, FFNShape):
            return shape.num_channels * self.channel_parameters + self.ffn_fixed
        if shape == NO_ATTENTION:
            return 0
        return (
            shape.num_heads * self.query_head_parameters
            + shape.num_kv_heads * self.kv_head_parameters
            + self.attention_fixed
        )

    @property
    def has_experts(self) -> bool:
        """Whether any block has an FFN of several experts."""
        return any(ffn.experts for ffn in self.ffn)

    def experts(self, site: Site) -> tuple[int, ...]:
        """Widths of a site's dense experts; none without experts."""
        return self.ffn[site.block].experts if site.kind == "ffn" else ()

    def active(self, site: Site, shape: Shape) -> float:
        """Parameters of a site of this shape that a token meets: those of its experts alone."""
        experts = len(self.experts(site))
        share = self.experts_per_token / experts if experts else 1
        return self.parameters(shape) * share

    @property
    def active_parameters(self) -> float:
        """Parameters of all sites that a token meets."""
        return sum(self.active(site, self.shape(site)) for site in self.sites)

    @property
    def prunable_parameters(self) -> int:
        """Parameters of all sites together: what sparsity is a share of."""
        return sum(self.parameters(self.shape(site)) for site in self.sites)
