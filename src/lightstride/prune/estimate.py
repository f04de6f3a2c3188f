"""How long a run will take, and how much memory and disk: from operation counts.

Three kinds of work are counted, each with a rate that `rates.py` measures on the machine:

    forward   2 operations a weight and token, through blocks (as wide as they are) and head
    gram      sum x x^T at every site: 2 * 9/16 I^2 operations a token (see `gram.py`)
    solve     factorizing, removing and refitting: about (2 + 1/3 removed share) I^3 operations a
              site and k^2 D a level of k inputs, in the mix of precisions of `local.py`

Shapes in the formulas: I inputs of a site's output weights, D hidden size, k inputs of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lightstride.models.shapes import FFNShape, Geometry, Shape, Site
from lightstride.prune.space.plan import Plan, Space, num_parameters
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSettings

GRAM_SHARE = 9 / 16
PROBE_SHARE = 0.5
"""Of the blocks, what a probe of one site computes anew."""
CHILD_SHARE = 0.9
"""The same of an offspring."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Operations a second of this machine."""

    forward: float
    gram: float
    solve: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one stage."""

    forward: float = 0.0
    gram: float = 0.0
    solve: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            forward=self.forward + other.forward,
            gram=self.gram + other.gram,
            solve=self.solve + other.solve,
        )

    def seconds(self, rates: Rates) -> float:
        """Time on a machine."""
        return self.forward / rates.forward + self.gram / rates.gram + self.solve / rates.solve


def inputs(geometry: Geometry, shape: Shape) -> int:
    """Inputs of the output weights of a site of this shape."""
    if isinstance(shape, FFNShape):
        return shape.num_channels
    return shape.num_heads * geometry.head_dim


def solve_operations(dense: int, widths: Sequence[int], outputs: int, *, nested: bool) -> float:
    """Cutting a site of `dense` inputs to these widths; nested levels share a factorization."""
    removed = 1 - min(widths) / dense
    total = (2 + removed / 3) * dense**3 + removed * dense**2 * outputs
    if nested:
        return total + sum(width**2 * outputs for width in widths)
    return total + sum(width**3 / 3 + 2 * width**2 * outputs for width in widths)


def supernet_work(
    geometry: Geometry, shapes: Sequence[tuple[Site, Sequence[Shape]]], num_tokens: int
) -> Work:
    """Statistics on so many tokens, and all these levels."""
    gram = solve = 0.0
    for site, levels in shapes:
        dense = inputs(geometry, geometry.shape(site))
        widths = [inputs(geometry, shape) for shape in levels]
        gram += 2 * GRAM_SHARE * dense**2 * num_tokens
        nested = site.kind == "ffn"
        solve += solve_operations(dense, widths, geometry.hidden_size, nested=nested)
    forward = 2.0 * geometry.prunable_parameters * num_tokens
    return Work(forward=forward, gram=gram, solve=solve)


def search_work(
    space: Space,
    plan: Plan,
    search: GuidedSettings | EvolutionSettings,
    *,
    stride: int = 1,
    probes: bool = True,
) -> Work:
    """Evaluations of one search around a plan, with or without probing every site."""
    geometry = space.geometry
    blocks = 2.0 * num_parameters(plan, geometry)
    head = 2.0 * geometry.vocab_size * geometry.hidden_size / stride
    if isinstance(search, EvolutionSettings):
        counts = (search.offspring, *(count + 1 for count in search.survivors))
        tokens = search.generations * sum(
            count * tokens for count, tokens in zip(counts, search.tokens, strict=False)
        )
        return Work(forward=tokens * (CHILD_SHARE * blocks + head))
    counts = (search.offspring, *search.survivors)
    probed = len(space.sites) * search.probe_tokens if probes else 0
    race = sum(count * tokens for count, tokens in zip(counts, search.tokens, strict=False))
    tokens = search.generations * race + sum(search.tokens)
    teacher = sum(search.tokens) * (2.0 * geometry.prunable_parameters + head)
    return Work(
        forward=teacher
        + tokens * (CHILD_SHARE * blocks + head)
        + probed * (PROBE_SHARE * blocks + head)
    )


def healing_work(geometry: Geometry, plans: Sequence[Plan], num_tokens: int) -> Work:
    """Training on so many tokens: the dense model forward, the cut one forward and backward."""
    total = 0.0
    head = geometry.vocab_size * geometry.hidden_size
    for plan in plans:
        cut = num_parameters(plan, geometry)
        total += 2.0 * num_tokens * (geometry.prunable_parameters + head + 3 * (cut + head))
    return Work(forward=total)


def supernet_bytes(geometry: Geometry, shapes: Sequence[tuple[Site, Sequence[Shape]]]) -> int:
    """Disk of a supernet: output weights in bf16; levels as wide as the dense site hold none."""
    widths = sum(
        inputs(geometry, shape)
        for site, levels in shapes
        for shape in levels
        if shape != geometry.shape(site)
    )
    return 2 * geometry.hidden_size * widths


def statistics_bytes(
    geometry: Geometry, num_tokens: int, *, bytes_per_number: int, resident_weights: int
) -> int:
    """Peak memory of a supernet's build: weights, two copies of the stream, one site's solve."""
    widest = max(inputs(geometry, geometry.shape(site)) for site in geometry.sites)
    stream = num_tokens * (geometry.hidden_size + widest) * bytes_per_number
    solve = widest**2 * (4 + 4 * 8) + 4 * 8 * widest * geometry.hidden_size
    return resident_weights + stream + solve
