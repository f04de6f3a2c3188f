"""Costs of a plan: parameters, bytes of memory, or measured time, always as integers.

Every budget is a function from a site's shape to an integer, so that sums are exact and the
search trades attention against FFN in the same unit.  `--sparsity 0.25` then means: a quarter
of the dense model's cost in that unit is gone.

    parameters   the site's weights and biases
    memory       their bytes, and the bytes of the KV cache at a given context and batch
    latency      nanoseconds of the site, measured on the user's device (`latency.py`)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightstride.errors import ConfigError
from lightstride.models.shapes import AttentionShape, Geometry, Shape, Site
from lightstride.prune.space.plan import Space, dense_plan
from lightstride.prune.space.targets import Target

CostFunction = Callable[[Site, Shape], int]


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Sizes of weights and KV cache as the model will be served."""

    context: int
    """Tokens of context each sequence holds in the KV cache."""
    batch: int = 1
    """Sequences served at once."""
    bytes_per_weight: int = 2
    """Bytes of one weight (2 for bf16)."""
    bytes_per_entry: int = 2
    """Bytes of one number in the KV cache."""

    def __post_init__(self) -> None:
        for name in ("context", "batch", "bytes_per_weight", "bytes_per_entry"):
            if getattr(self, name) < 1:
                raise ConfigError(f"memory budget: {name} is {getattr(self, name)}, not >= 1")


def parameter_cost(geometry: Geometry) -> CostFunction:
    """Parameters of a site."""
    return lambda site, shape: geometry.parameters(shape)


def memory_cost(geometry: Geometry, memory: MemorySettings) -> CostFunction:
    """Bytes of a site's weights and of its share of the KV cache."""

    def cost(site: Site, shape: Shape) -> int:
        weights = geometry.parameters(shape) * memory.bytes_per_weight
        if not isinstance(shape, AttentionShape):
            return weights
        entries = 2 * shape.num_kv_heads * geometry.head_dim * memory.context * memory.batch
        return weights + entries * memory.bytes_per_entry

    return cost


def table_cost(nanoseconds: Mapping[Shape, int]) -> CostFunction:
    """Time of a site as measured; every shape of the space must be in the table."""
    return lambda site, shape: nanoseconds[shape]


def build_space(geometry: Geometry, target: Target, cost: CostFunction) -> Space:
    """All shapes the target allows, at these costs, cheapest first."""
    shapes: dict[Site, tuple[Shape, ...]] = {}
    costs: dict[Site, tuple[int, ...]] = {}
    for site, allowed in target.admissible(geometry).items():
        priced = sorted((cost(site, shape), shape) for shape in allowed)
        shapes[site] = tuple(shape for _, shape in priced)
        costs[site] = tuple(price for price, _ in priced)
    return Space(shapes, costs, geometry, target.uniform)


def dense_cost(geometry: Geometry, cost: CostFunction) -> int:
    """Cost of the unpruned model in the same unit."""
    plan = dense_plan(geometry)
    return sum(cost(site, shape) for site, shape in plan.shapes.items())
