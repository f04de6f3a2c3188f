"""Budgets: parameters, bytes with the cache, and their limits."""

import math
from collections.abc import Callable

import pytest

from helpers.toys import tiny_llama
from lightstride.errors import ConfigError
from lightstride.models.families.registry import adapter_for
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Site
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.space.budget import (
    MemorySettings,
    build_space,
    dense_cost,
    memory_cost,
    parameter_cost,
)
from lightstride.prune.space.latency import LatencySettings
from lightstride.prune.space.narrow import limit_for, uniform_plan
from lightstride.prune.space.plan import sparsity
from lightstride.prune.space.targets import TARGETS, Target

MODEL = tiny_llama(num_kv_heads=4, num_channels=96, num_layers=3)
GEOMETRY = adapter_for(MODEL.config).geometry(MODEL.config)
TARGET = Target(name="toy", channel_multiple=8)


def test_parameters_are_the_models_own() -> None:
    sites = DenseSites.of(MODEL, adapter_for(MODEL.config))
    counted = sum(t.numel() for weights in sites.weights.values() for t in weights.values())
    assert dense_cost(GEOMETRY, parameter_cost(GEOMETRY)) == counted


def test_memory_counts_weights_and_cache() -> None:
    memory = MemorySettings(context=100, batch=3, bytes_per_weight=2, bytes_per_entry=1)
    cost = memory_cost(GEOMETRY, memory)
    shape = AttentionShape(3, 1)
    weights = 2 * GEOMETRY.parameters(shape)
    assert cost(Site(0, "attention"), shape) == weights + 2 * 3 * GEOMETRY.head_dim * 100 * 3
    assert cost(Site(0, "ffn"), FFNShape(8)) == 2 * GEOMETRY.parameters(FFNShape(8))


def test_a_long_context_prefers_fewer_kv_groups() -> None:
    short = build_space(GEOMETRY, TARGET, memory_cost(GEOMETRY, MemorySettings(context=1)))
    long = build_space(GEOMETRY, TARGET, memory_cost(GEOMETRY, MemorySettings(context=100_000)))
    site = Site(0, "attention")
    groups, queries = AttentionShape(2, 2), AttentionShape(4, 1)
    assert short.cost(site, groups) < short.cost(site, queries) * 1.1
    assert long.cost(site, groups) < 0.6 * long.cost(site, queries)


def test_memory_budgets_meet_their_limit() -> None:
    cost = memory_cost(GEOMETRY, MemorySettings(context=64))
    space = build_space(GEOMETRY, TARGET, cost)
    dense = dense_cost(GEOMETRY, cost)
    plan = uniform_plan(space, 0.4, limit_for(0.4, dense, space))
    assert 0.55 * dense < space.total(plan) <= 0.6 * dense
    assert 0.2 < sparsity(plan, GEOMETRY) < 0.6


@pytest.mark.parametrize(
    "make",
    [
        lambda: MemorySettings(context=0),
        lambda: MemorySettings(context=64, bytes_per_weight=0),
        lambda: LatencySettings(context=64, grid=1),
        lambda: LatencySettings(context=64, decode_weight=-1.0),
        lambda: LatencySettings(context=64, prefill_weight=0, decode_weight=0),
    ],
)
def test_bad_settings(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_every_named_target_has_a_space_for_a_usual_model() -> None:
    usual = Geometry(
        family="llama",
        hidden_size=4096,
        head_dim=128,
        vocab_size=128_256,
        tied_head=False,
        attention=(AttentionShape(8, 4),) * 32,
        ffn=(FFNShape(14_336),) * 32,
        query_head_parameters=2 * 128 * 4096,
        kv_head_parameters=2 * 128 * 4096,
        channel_parameters=3 * 4096,
    )
    for target in TARGETS.values():
        space = build_space(usual, target, parameter_cost(usual))
        plan = uniform_plan(space, 0.25, limit_for(0.25, usual.prunable_parameters, space))
        assert math.isclose(sparsity(plan, usual), 0.25, abs_tol=0.02)
        assert all(target.allows(shape, usual.shape(site)) for site, shape in plan.shapes.items())
