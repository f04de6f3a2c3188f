"""Spaces of SmolLM2's sizes, and uniform plans in them."""

from lightstride.models.shapes import (
    AttentionShape,
    FFNShape,
    Geometry,
)
from lightstride.prune.space.budget import build_space, dense_cost, parameter_cost
from lightstride.prune.space.narrow import limit_for, uniform_plan
from lightstride.prune.space.plan import Plan, Space
from lightstride.prune.space.targets import TARGETS, Target

SMOLLM2 = Geometry(
    family="llama",
    hidden_size=576,
    head_dim=64,
    vocab_size=49152,
    tied_head=True,
    attention=(AttentionShape(3, 3),) * 30,
    ffn=(FFNShape(1536),) * 30,
    query_head_parameters=2 * 64 * 576,
    kv_head_parameters=2 * 64 * 576,
    channel_parameters=3 * 576,
)


def space_of(geometry: Geometry, target: Target = TARGETS["any"]) -> Space:
    return build_space(geometry, target, parameter_cost(geometry))


def uniform_at(geometry: Geometry, share: float, target: Target = TARGETS["any"]) -> Plan:
    space = space_of(geometry, target)
    limit = limit_for(share, dense_cost(geometry, parameter_cost(geometry)), space)
    return uniform_plan(space, share, limit)
