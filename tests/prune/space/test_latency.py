"""Measured time of a shape, made to rise with width."""

from collections.abc import Callable

import torch

from helpers.toys import tiny_llama
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionShape, FFNShape
from lightstride.prune.space.budget import (
    build_space,
    table_cost,
)
from lightstride.prune.space.latency import (
    LatencySettings,
    interpolate,
    latency_table,
    sample_evenly,
)
from lightstride.prune.space.targets import Target
from lightstride.search.moves import Moves

MODEL = tiny_llama(num_kv_heads=4, num_channels=96, num_layers=3)
GEOMETRY = adapter_for(MODEL.config).geometry(MODEL.config)
TARGET = Target(name="toy", channel_multiple=8)


def test_latency_rises_with_width_whatever_the_clock_says() -> None:
    ticks = iter([5.0, 1.0, 4.0, 9.0, 2.0, 9.0] * 100)

    def clock(call: Callable[[], object]) -> float:
        call()
        return next(ticks)

    shapes = [shape for site in GEOMETRY.sites for shape in TARGET.shapes(GEOMETRY.shape(site))]
    table = latency_table(
        GEOMETRY,
        shapes,
        LatencySettings(context=8, grid=4),
        dtype=torch.float32,
        device=torch.device("cpu"),
        timer=clock,
    )
    assert set(table) == set(shapes)
    times = [table[FFNShape(width)] for width in range(8, 97, 8)]
    assert times == sorted(times)
    space = build_space(GEOMETRY, TARGET, table_cost(table))
    moves = Moves(space, space.largest * 3 // 4)
    largest = tuple(len(costs) - 1 for costs in moves.costs)
    assert moves.cost(moves.repair(largest, lambda sites: sites[0])) <= moves.limit


def test_latency_is_measured_on_the_device() -> None:
    table = latency_table(
        GEOMETRY,
        [FFNShape(8), FFNShape(96), AttentionShape(1, 1), AttentionShape(4, 2)],
        LatencySettings(context=16, repeats=1, prefill_weight=1, decode_weight=2),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert all(100 < value < 10**9 for value in table.values())


def test_widths_between_are_interpolated() -> None:
    assert sample_evenly([8, 16, 24, 32, 40], 3) == [8, 24, 40]
    assert sample_evenly([8], 9) == [8]
    assert interpolate([8, 24], [100, 200], 16) == 150
    assert interpolate([8, 24], [100, 200], 24) == 200
