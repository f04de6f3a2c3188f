"""What `smash --from-head FILE` does: the authors' checkpoint, in safetensors, becomes ours."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from lightstride.checkpoint import save_checkpoint
from lightstride.commands.outputs import save_result
from lightstride.commands.smashing.training import BASE_FOLDER
from lightstride.config import SmashRunConfig
from lightstride.distributed import rank
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.smash.published import open_published


def take_published(
    config: SmashRunConfig, source: str, device: str, dtype: torch.dtype
) -> Mapping[str, object]:
    """Write the grafts, and the base that was trained with them; the result.

    The model given lends its config and its tokenizer; its weights are replaced.  Of several
    processes the first alone writes.  Raises ModelError for a file that does not fit it.
    """
    tokenizer = load_tokenizer(config.model)
    base = load_model(
        config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )
    model = open_published(source, base)
    model.config.base = BASE_FOLDER
    model.config.base_fingerprint = fingerprint(model.base)
    numbers: dict[str, object] = {
        "drafter": "micro",
        "head": source,
        "base": model.config.base_fingerprint,
        "graft_parameters": sum(p.numel() for graft in model.grafts() for p in graft.parameters()),
        "max_segment": model.config.max_segment,
    }
    if rank() > 0:
        return numbers
    output = Path(config.output)
    record = {"kind": "smash", "config": config.as_dict()}
    save_checkpoint(model, tokenizer, output, record=record)
    save_checkpoint(model.base, tokenizer, output / BASE_FOLDER, record=record)
    sys.stdout.write(
        f"{output}: the HAMburger checkpoint {source}, up to {model.config.max_segment} tokens a "
        "step, with its own base\n"
    )
    return save_result("smash", config, numbers)
