"""Limits of inference engines on every site's shape, and the named targets.

The search never proposes a shape outside the target, so its plans can be exported.
Torch-free: export checks a plan against the same table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd

from lightstride.config.prune import TargetName
from lightstride.errors import BudgetError, ConfigError
from lightstride.models.engines import DECILM, LLAMA_CPP
from lightstride.models.shapes import (
    NO_ATTENTION,
    AttentionShape,
    FFNShape,
    Geometry,
    Shape,
    Site,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Limits on shapes; the defaults are those of our own checkpoints."""

    name: str
    min_kv_heads: int = 1
    """Fewest KV groups a block keeps (an engine's KV cache needs one)."""
    min_channels: int = 1
    """Fewest FFN channels a block keeps; rounded up to the multiple."""
    channel_multiple: int = 32
    """Widths of the FFN are multiples of this, or the dense width itself."""
    heads_multiple: int = 1
    """Query heads of a block are a multiple of this."""
    head_shapes: tuple[AttentionShape, ...] | None = None
    """The only attention shapes allowed beside the dense one; None allows all."""
    heads_fixed: bool = False
    """Attention stays as it is."""
    attention_optional: bool = False
    """A block may lose its attention whole, whatever else is asked of heads; never the first."""
    tensor_parallel: int = 1
    """KV groups and FFN channels divide by this number of devices."""
    uniform: bool = False
    """Every block has the same widths."""
    families: tuple[str, ...] = ()
    """The only families the engine runs; none named means all."""

    def __post_init__(self) -> None:
        for field in (
            "min_kv_heads",
            "min_channels",
            "channel_multiple",
            "heads_multiple",
            "tensor_parallel",
        ):
            if getattr(self, field) < 1:
                raise ConfigError(
                    f"target {self.name}: {field} is {getattr(self, field)}, not >= 1"
                )

    def allows(self, shape: Shape, dense: Shape) -> bool:
        """True if a site (not of the first block) of dense shape `dense` may be cut to `shape`."""
        if isinstance(shape, FFNShape):
            width = shape.num_channels
            aligned = width % self._step(dense) == 0 or shape == dense
            return aligned and width >= self.min_channels and width % self.tensor_parallel == 0
        if shape == NO_ATTENTION:
            return self.attention_optional
        if self.heads_fixed and shape != dense:
            return False
        listed = self.head_shapes is None or shape in self.head_shapes or shape == dense
        return (
            listed
            and shape.num_kv_heads >= self.min_kv_heads
            and shape.num_kv_heads % self.tensor_parallel == 0
            and (shape.num_heads % self.heads_multiple == 0 or shape == dense)
        )

    def shapes(self, dense: Shape) -> tuple[Shape, ...]:
        """Every shape a site (not of the first block) may have, smallest first."""
        allowed = [shape for shape in self._aligned(dense) if self.allows(shape, dense)]
        if self.allows(dense, dense) and dense not in allowed:
            allowed.append(dense)
        if not allowed:
            raise BudgetError(
                f"target {self.name} with --tp {self.tensor_parallel} allows no shape of a site "
                f"that is {dense}: KV heads and channels must divide by --tp"
            )
        return tuple(allowed)

    def _aligned(self, dense: Shape) -> Iterator[Shape]:
        if isinstance(dense, FFNShape):
            step = self._step(dense)
            yield from map(FFNShape, range(step, dense.num_channels + 1, step))
            return
        yield NO_ATTENTION
        for groups in range(1, dense.num_kv_heads + 1):
            for queries in range(1, dense.queries_per_group + 1):
                yield AttentionShape(groups, queries)

    def _step(self, dense: Shape) -> int:
        """What widths are multiples of; those of experts divide each dense expert's width too."""
        experts = dense.experts if isinstance(dense, FFNShape) else ()
        return gcd(self.channel_multiple, *experts)

    def admissible(self, geometry: Geometry) -> dict[Site, tuple[Shape, ...]]:
        """Every site's allowed shapes; of experts as many stay as a token is sent to."""
        dense = {site: geometry.shape(site) for site in geometry.sites}
        kinds = {(shape, getattr(shape, "experts", ())): shape for shape in dense.values()}
        allowed = {key: self.shapes(shape) for key, shape in kinds.items()}

        def stays(site: Site, shape: Shape) -> bool:
            if isinstance(shape, FFNShape):
                step = self._step(dense[site])
                experts = geometry.experts(site)
                return not experts or shape.num_channels >= step * geometry.experts_per_token
            return bool(site.block) or shape != NO_ATTENTION

        return {
            site: tuple(
                each for each in allowed[shape, getattr(shape, "experts", ())] if stays(site, each)
            )
            for site, shape in dense.items()
        }


TARGETS: Mapping[TargetName, Target] = {
    "any": Target(name="any"),
    "hf": Target(name="hf"),
    "vllm": Target(name="vllm"),
    "gguf": Target(name="gguf"),
    "decilm": Target(
        name="decilm",
        min_channels=256,
        channel_multiple=256,
        heads_fixed=True,
        attention_optional=True,
        families=DECILM,
    ),
    "uniform": Target(name="uniform", uniform=True),
}
"""Q8_0 and Q4_0 pack blocks of 32 numbers; for K-quants ask for multiples of 256."""


def for_model(target: Target, geometry: Geometry) -> Target:
    """The target narrowed to the shapes that its engines run of this family.

    `any` stands for transformers, vLLM and llama.cpp, or for the first two where llama.cpp has
    nothing for the family.
    """
    family = geometry.family
    if NO_ATTENTION in geometry.attention:
        block = geometry.attention.index(NO_ATTENTION)
        raise ConfigError(
            f"block {block} of the model has no attention left: prune the model it was made from"
        )
    check_experts_can_be_cut(target, geometry)
    if target.families and family not in target.families:
        raise ConfigError(
            f"target {target.name} runs {', '.join(target.families)}, not {family}: "
            "choose another --target"
        )
    runs = LLAMA_CPP.get(family)
    if target.name == "gguf" and runs is None:
        raise ConfigError(f"no file for llama.cpp is written of {family}: choose another --target")
    if target.name not in ("any", "gguf") or runs is None:
        return target
    if runs.runs_own_widths(geometry):
        return target
    return replace(target, uniform=True, heads_fixed=target.heads_fixed or runs.all_heads)


def check_experts_can_be_cut(target: Target, geometry: Geometry) -> None:
    """Raise ConfigError for experts that were cut before, and targets that want them alike."""
    if not geometry.has_experts:
        return
    if any(len(set(ffn.experts)) > 1 for ffn in geometry.ffn):
        raise ConfigError(
            "experts of the model differ in width: prune the model that it was made from"
        )
    if target.uniform:
        raise ConfigError(
            "experts lose different numbers of channels, so --target uniform cannot have them; "
            "choose another --target"
        )


def named_target(
    name: TargetName, *, tensor_parallel: int = 1, channel_multiple: int | None = None
) -> Target:
    """The target of this name, for so many devices and, if given, another FFN multiple."""
    if name not in TARGETS:
        raise ConfigError(f"no target is called {name!r}; there are {', '.join(TARGETS)}")
    target = TARGETS[name]
    multiple = target.channel_multiple if channel_multiple is None else channel_multiple
    if multiple % target.channel_multiple and name not in ("any", "hf", "uniform"):
        raise ConfigError(
            f"target {name} needs FFN widths in multiples of {target.channel_multiple}, "
            f"which {multiple} is not"
        )
    return replace(target, tensor_parallel=tensor_parallel, channel_multiple=multiple)
