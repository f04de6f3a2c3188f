"""From the flags of `lightstride prune` to the settings of its parts."""

from dataclasses import replace

from lightstride.config import PruneConfig
from lightstride.errors import ConfigError
from lightstride.models.shapes import Geometry
from lightstride.prune.fitness import FitnessSettings
from lightstride.prune.rounds import RoundSettings
from lightstride.prune.space.budget import CostFunction, MemorySettings, memory_cost, parameter_cost
from lightstride.prune.space.latency import LatencySettings
from lightstride.prune.space.targets import Target, for_model, named_target
from lightstride.search.evolution import EvolutionSettings
from lightstride.search.guided import GuidedSettings


def target_of(config: PruneConfig, geometry: Geometry) -> Target:
    """The engine's limits for this model."""
    target = named_target(
        config.target, tensor_parallel=config.tp, channel_multiple=config.multiple
    )
    return for_model(target, geometry)


def cost_of(config: PruneConfig, geometry: Geometry) -> CostFunction:
    """Cost of a site in the budget's unit; parameters, where time is not measured yet."""
    if config.budget == "latency" and geometry.has_experts:
        raise ConfigError(
            "--budget latency cannot time experts, which see as many tokens as are sent to them; "
            "choose another --budget"
        )
    if config.budget == "memory":
        return memory_cost(geometry, MemorySettings(context=config.context, batch=config.batch))
    return parameter_cost(geometry)


def serving_of(config: PruneConfig) -> LatencySettings:
    """Settings of a latency budget."""
    return LatencySettings(
        context=config.context,
        batch=config.batch,
        prefill_weight=config.prefill_weight,
        decode_weight=config.decode_weight,
    )


def rounds_of(config: PruneConfig) -> RoundSettings:
    """Settings of the rounds."""
    assert config.rounds is not None
    assert config.levels is not None
    assert config.split is not None
    assert config.accumulation is not None
    assert config.correction is not None
    fitness = FitnessSettings(top_k=config.top_k, cache_bytes=int(config.cache_gib * 2**30))
    return RoundSettings(
        search=search_of(config),
        num_rounds=config.rounds,
        num_levels=config.levels,
        split=config.split,
        accumulation=config.accumulation,
        weigh_tokens=config.token_weights == "relative",
        correction=config.correction,
        damping=config.damping,
        early_share=config.preset_number("early_share"),
        fitness=fitness,
        seed=config.seed,
    )


def search_of(config: PruneConfig) -> GuidedSettings | EvolutionSettings | None:
    """The search that was asked for, as long as its text allows."""
    assert config.generations is not None
    assert config.offspring is not None
    assert config.search_tokens is not None
    if config.search == "none":
        return None
    if config.search == "paper":
        published = EvolutionSettings(generations=config.generations, offspring=config.offspring)
        tokens = tuple(min(count, config.search_tokens) for count in published.tokens)
        return replace(published, tokens=tokens)
    guided = GuidedSettings(generations=config.generations, offspring=config.offspring)
    if config.search_tokens >= sum(guided.tokens):
        return guided
    share = config.search_tokens / sum(guided.tokens)
    window = config.window or 1
    stages = tuple(max(window, int(share * count) // window * window) for count in guided.tokens)
    return replace(guided, tokens=stages, probe_tokens=stages[0])
