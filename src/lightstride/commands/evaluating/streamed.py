"""Perplexity of a model that is larger than memory: read block by block, all windows at once."""

from pathlib import Path

from transformers import PreTrainedModel

from lightstride.checkpoint import is_headed, is_smashed
from lightstride.config import EvaluateConfig
from lightstride.config.values import parse_size, size_text
from lightstride.data.windows import Windows
from lightstride.errors import ConfigError
from lightstride.evaluate.perplexity import Perplexity, perplexity
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.skeleton import load_skeleton
from lightstride.models.opening.streamed import open_streamed
from lightstride.prune.devices import weight_bytes
from lightstride.prune.footprint import PROGRAM_BYTES
from lightstride.prune.ways import block_bytes, end_bytes

LOGIT_BYTES = 64 << 20
"""Of the logits of a slice of positions, and what is made of them."""


def too_large(source: str, config: EvaluateConfig) -> PreTrainedModel | None:
    """The model without its weights if they are more than `--memory` allows, else None.

    ConfigError where that is needed for anything but the perplexity of a plain model.
    """
    if config.memory is None:
        return None
    trusted = config.trust_remote_code
    if is_smashed(source, trust_remote_code=trusted) or is_headed(
        source, trust_remote_code=trusted
    ):
        return None
    dtype = pick_dtype(config.dtype, suitable_dtype(pick_device(config.device)))
    model = load_skeleton(source, dtype=dtype, trust_remote_code=trusted)
    needed = PROGRAM_BYTES + weight_bytes(model)
    if needed <= parse_size("--memory", config.memory):
        return None
    if config.task_names or config.is_compared:
        raise ConfigError(
            f"--memory {config.memory}: only --perplexity reads a model block by block; the whole "
            f"of {source} takes {size_text(needed)}"
        )
    return model


def streamed_perplexity(
    source: str, model: PreTrainedModel, windows: Windows, config: EvaluateConfig
) -> Perplexity:
    """Perplexity of a model that `too_large` gave; ConfigError where memory is less than needed."""
    assert config.memory is not None
    limit, geometry = (
        parse_size("--memory", config.memory),
        adapter_for(model.config).geometry(model.config),
    )
    itemsize = model.dtype.itemsize
    working = max(2 * block_bytes(geometry, itemsize), end_bytes(geometry, itemsize) + LOGIT_BYTES)
    least = PROGRAM_BYTES + working
    if least > limit:
        raise ConfigError(
            f"--memory {config.memory} is too little for {source}: the least that works is "
            f"{size_text(least)}"
        )
    hidden = windows.tokens_NL.numel() * geometry.hidden_size * itemsize
    spill = Path(f"{config.output.rstrip('/')}.activations") if least + hidden > limit else None
    opened = open_streamed(
        source,
        dtype=model.dtype,
        device=pick_device(config.device),
        trust_remote_code=config.trust_remote_code,
    )
    return perplexity(opened, windows, batch_size=config.batch_size, spill=spill, progress=True)
