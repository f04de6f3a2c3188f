"""Models that are larger than `--memory`: read block by block, every block once for all texts.

Perplexity, fidelity, last words and tasks of log-likelihoods ask what a model thinks of given
texts: all of them pass a block together.  What needs answers needs the whole model and is refused.
What is there at once, beside the program:

    blocks    two of them, and what one computes of a batch, (4 D + 4 A + 3 F) b bytes a token
    ends      the embedding or the head, and some logits
    texts     T D b bytes of hidden states; in files, as far as they have no room

A second model that is held against the first finds the first one's head, and its texts, there.

Shapes: T tokens of all texts, D hidden size, A inputs of an attention's output weights, F channels
of an FFN, b bytes of a weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lightstride.checkpoint import is_headed, is_smashed
from lightstride.config import EvaluateConfig
from lightstride.config.values import parse_size, size_text
from lightstride.errors import ConfigError
from lightstride.evaluate.block_reader import BlockReader
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_tokenizer, local_folder, locate
from lightstride.models.opening.skeleton import load_skeleton
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.passes import Spill
from lightstride.models.shapes import Geometry, Kind
from lightstride.prune.devices import weight_bytes
from lightstride.prune.footprint import PROGRAM_BYTES
from lightstride.prune.ways import block_bytes, end_bytes
from lightstride.smash.model.graft_files import read_config
from lightstride.smash.model.headed import read_headed

LOGIT_BYTES = 64 << 20
"""Of the logits of a slice of positions, and what is made of them."""
HARNESS_BYTES = 300 << 20
"""Of lm-eval and what it imports."""
TOKENS_PER_SEQUENCE = 128
"""Tokens in a task's batch for each sequence of --batch-size."""
PASSAGE_TOKENS = 2048
"""Tokens in a batch of passages whose last words are asked."""


@dataclass(frozen=True)
class Blockwise:
    """How models are read block by block."""

    batch_size: int
    """Sequences at once: as many as were asked for, or fewer."""
    room: int
    """Bytes that are left for hidden states."""


def blockwise(sources: Sequence[str], config: EvaluateConfig) -> Blockwise | None:
    """How to read models that are there together; None if they fit as a whole, or have no limit.

    ConfigError where memory is too little for what is asked of them.
    """
    if config.memory is None:
        return None
    limit, program = parse_size("--memory", config.memory), PROGRAM_BYTES
    if config.task_names:
        program += HARNESS_BYTES
    whole = program + sum(whole_bytes(source, config) for source in sources)
    if whole <= limit:
        return None
    check_possible(sources, config, whole)
    models = [bare(source, config) for source in sources]
    for batch_size in range(config.batch_size, 0, -1):
        least = program + least_bytes(models, tokens_at_once(config, len(sources), batch_size))
        if least <= limit:
            return Blockwise(batch_size, limit - least)
    raise ConfigError(
        f"--memory {config.memory} is too little for {' and '.join(sources)}: the least that works "
        f"is {size_text(least)}"
    )


def check_possible(sources: Sequence[str], config: EvaluateConfig, whole: int) -> None:
    """ConfigError where models must be there as a whole, which takes so many bytes."""
    asked = {
        "--loops": config.loops,
        "--instructions": config.instructions,
        "--yardsticks": config.yardsticks,
    }
    reasons = [flag for flag, value in asked.items() if value and len(sources) > 1]
    reasons += [f"{name}, which drafts," for name in sources if base_of(name, config) is not None]
    for reason in reasons:
        raise ConfigError(
            f"--memory {config.memory}: {reason} needs the whole of {' and '.join(sources)}, "
            f"{size_text(whole)}; --perplexity, --tasks and --fidelity of plain models do not"
        )


def base_of(source: str, config: EvaluateConfig) -> str | None:
    """The base of a model with grafts or a draft head; None for a plain one."""
    trusted = config.trust_remote_code
    if is_smashed(source, trust_remote_code=trusted):
        return read_config(source).base
    if is_headed(source, trust_remote_code=trusted):
        return read_headed(Path(locate(source))).base
    return None


def bare(source: str, config: EvaluateConfig) -> PreTrainedModel:
    """A model without its weights."""
    dtype = pick_dtype(config.dtype, suitable_dtype(pick_device(config.device)))
    return load_skeleton(source, dtype=dtype, trust_remote_code=config.trust_remote_code)


def whole_bytes(source: str, config: EvaluateConfig) -> int:
    """A model's weights, with those that draft for it as their files have them."""
    base = base_of(source, config)
    if base is None:
        return weight_bytes(bare(source, config))
    files = local_folder(source).rglob("*.safetensors")
    return weight_bytes(bare(base, config)) + sum(file.stat().st_size for file in files)


def tokens_at_once(config: EvaluateConfig, num_models: int, batch_size: int) -> int:
    """Tokens of the largest batch, of one model alone or of two that are compared."""
    if num_models > 1:
        return max(config.window, PASSAGE_TOKENS)
    text = 0 if config.perplexity is None else config.window
    items = TOKENS_PER_SEQUENCE if config.task_names else 0
    return max(text, items) * batch_size


def least_bytes(models: Sequence[PreTrainedModel], tokens: int) -> int:
    """Bytes beside the program, without the texts' hidden states; models come one by one."""
    most = heads = 0
    for model in models:
        geometry = adapter_for(model.config).geometry(model.config)
        itemsize = model.dtype.itemsize
        end = end_bytes(geometry, itemsize)
        computed = tokens * (4 * geometry.hidden_size + widest(geometry)) * itemsize
        blocks = 2 * block_bytes(geometry, itemsize) + computed
        most = max(most, heads + max(blocks, end + LOGIT_BYTES))
        heads += end
    return most


def widest(geometry: Geometry) -> int:
    """Values a token that a block makes inside, beside hidden states."""
    weights: dict[Kind, int] = {"attention": 4, "ffn": 3}
    return sum(
        count
        * max(
            geometry.num_inputs(geometry.shape(site))
            for site in geometry.sites
            if site.kind == kind
        )
        for kind, count in weights.items()
    )


def open_blocks(
    source: str, how: Blockwise, config: EvaluateConfig, name: str = "activations"
) -> BlockReader:
    """A model that is read so; hidden states without room go to a folder beside the output."""
    opened = open_streamed(
        source,
        dtype=pick_dtype(config.dtype, suitable_dtype(pick_device(config.device))),
        device=pick_device(config.device),
        trust_remote_code=config.trust_remote_code,
    )
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    folder = Path(f"{config.output.rstrip('/')}.{name}")
    return BlockReader(opened, tokenizer, Spill(folder, how.room))
