"""Time of a site on this device at every width: the table behind a latency budget.

A site is timed alone, as its matrix products and the attention kernel between them: once as in
a prefill of the whole context, once as in a decoding step against a full cache.  A shape's cost
is the weighted sum of both in nanoseconds.  Widths of an FFN are timed on a grid, interpolated,
and made to rise with the width, so that timing noise never says that wider is faster.

Shapes: B sequences, L tokens of context, D hidden size, H query heads, G KV heads, d head size.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightstride.errors import ConfigError
from lightstride.models.device import best_time
from lightstride.models.shapes import NO_ATTENTION, AttentionShape, FFNShape, Geometry, Shape


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """The calls that are timed, and their weights."""

    context: int
    """Tokens of a prefill, and of the KV cache that a decoding step reads."""
    batch: int = 1
    """Sequences at once."""
    prefill_weight: float = 1.0
    """Number of whole prefills that count."""
    decode_weight: float = 256.0
    """Number of decoding steps that count."""
    grid: int = 9
    """Widths of the FFN that are timed; the others lie between."""
    repeats: int = 5

    def __post_init__(self) -> None:
        if min(self.context, self.batch, self.repeats) < 1 or self.grid < 2:
            raise ConfigError("context, batch and repeats must be at least 1, grid at least 2")
        if min(self.prefill_weight, self.decode_weight) < 0 or not (
            self.prefill_weight + self.decode_weight
        ):
            raise ConfigError("prefill and decode weights must not be negative, nor both zero")


Timer = Callable[[Callable[[], object]], float]
"""Seconds that one call takes."""


def latency_table(
    geometry: Geometry,
    shapes: Iterable[Shape],
    serving: LatencySettings,
    *,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer | None = None,
) -> dict[Shape, int]:
    """Nanoseconds of every shape, 0 for none, else at least 1, rising with the width of an FFN."""
    clock = timer or (lambda call: best_time(call, serving.repeats, device))
    wanted = sorted(set(shapes), key=lambda shape: (isinstance(shape, FFNShape), str(shape)))
    widths = sorted(shape.num_channels for shape in wanted if isinstance(shape, FFNShape))
    table: dict[Shape, int] = {NO_ATTENTION: 0} if NO_ATTENTION in wanted else {}
    for shape in wanted:
        if isinstance(shape, AttentionShape) and shape != NO_ATTENTION:
            calls = attention_calls(geometry, shape, serving, dtype, device)
            table[shape] = nanoseconds(calls, serving, clock)
    if widths:
        grid = sample_evenly(widths, serving.grid)
        timed: list[int] = []
        for width in grid:
            calls = ffn_calls(geometry, width, serving, dtype, device)
            timed.append(max(nanoseconds(calls, serving, clock), *timed[-1:], 1))
        for width in widths:
            table[FFNShape(width)] = interpolate(grid, timed, width)
    return table


def nanoseconds(
    calls: tuple[Callable[[], object], Callable[[], object]], serving: LatencySettings, clock: Timer
) -> int:
    """The weighted time of a prefill and a decoding step."""
    prefill, decode = calls
    total = 0.0
    if serving.prefill_weight:
        total += serving.prefill_weight * clock(prefill)
    if serving.decode_weight:
        total += serving.decode_weight * clock(decode)
    return max(1, round(total * 1e9))


def ffn_calls(
    geometry: Geometry,
    width: int,
    serving: LatencySettings,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A prefill and a decoding step of an FFN with so many channels."""
    matrices = round(geometry.channel_parameters / geometry.hidden_size)

    def weight(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=dtype, device=device)

    inner = [weight(width, geometry.hidden_size) for _ in range(max(1, matrices - 1))]
    down = weight(geometry.hidden_size, width)

    def run(hidden_BLD: Tensor) -> Tensor:
        values_BLC = functional.silu(functional.linear(hidden_BLD, inner[0]))
        for weight_CD in inner[1:]:
            values_BLC = values_BLC * functional.linear(hidden_BLD, weight_CD)
        return functional.linear(values_BLC, down)

    many, one = hidden_states(geometry, serving, dtype, device)
    return (lambda: run(many)), (lambda: run(one))


def attention_calls(
    geometry: Geometry,
    shape: AttentionShape,
    serving: LatencySettings,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A prefill and a decoding step, with a full cache, of an attention of this shape."""
    size, hidden = geometry.head_dim, geometry.hidden_size
    widths = (shape.num_heads * size, shape.num_kv_heads * size, shape.num_kv_heads * size)
    inner = [torch.randn(width, hidden, dtype=dtype, device=device) for width in widths]
    output = torch.randn(hidden, widths[0], dtype=dtype, device=device)
    cached = (serving.batch, shape.num_kv_heads, serving.context, size)
    keys = torch.randn(cached, dtype=dtype, device=device)
    values = torch.randn(cached, dtype=dtype, device=device)

    def run(hidden_BLD: Tensor) -> Tensor:
        query, key, value = (
            functional.linear(hidden_BLD, weight).unflatten(-1, (-1, size)).transpose(1, 2)
            for weight in inner
        )
        whole = hidden_BLD.shape[1] > 1
        mixed_BHLd = functional.scaled_dot_product_attention(
            query,
            key if whole else keys,
            value if whole else values,
            is_causal=whole,
            enable_gqa=True,
        )
        return functional.linear(mixed_BHLd.transpose(1, 2).flatten(2), output)

    many, one = hidden_states(geometry, serving, dtype, device)
    return (lambda: run(many)), (lambda: run(one))


def hidden_states(
    geometry: Geometry, serving: LatencySettings, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Inputs of a prefill and of a decoding step."""
    shape = (serving.batch, serving.context, geometry.hidden_size)
    many = torch.randn(shape, dtype=dtype, device=device)
    return many, many[:, :1].contiguous()


def sample_evenly(widths: Sequence[int], count: int) -> list[int]:
    """At most `count` of the widths, the ends among them, evenly spaced by rank."""
    last = len(widths) - 1
    places = {round(i * last / (count - 1)) for i in range(count)}
    return [widths[place] for place in sorted(places)]


def interpolate(grid: Sequence[int], values: Sequence[int], width: int) -> int:
    """The value at a width between two of the grid, on the straight line between theirs."""
    right = bisect_left(grid, width)
    if grid[right] == width:
        return values[right]
    share = (width - grid[right - 1]) / (grid[right] - grid[right - 1])
    return round(values[right - 1] + share * (values[right] - values[right - 1]))
