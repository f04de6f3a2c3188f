"""What `smash --from-head FILE` does: the authors' checkpoint, in safetensors, becomes ours."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lightstride.checkpoint import is_saved, save_checkpoint
from lightstride.commands.smashing.facts import NewDrafter
from lightstride.commands.smashing.training import BASE_FOLDER
from lightstride.config import SmashRunConfig
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.smash.published import open_published


def take_published(
    config: SmashRunConfig, source: str, device: str, dtype: torch.dtype
) -> NewDrafter:
    """The grafts, and the base that was trained with them.

    The model given lends its config and its tokenizer; its weights are replaced.  Raises
    ModelError for a file that does not fit it.
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
    text = (
        f"{config.output}: the HAMburger checkpoint {source}, up to {model.config.max_segment} "
        "tokens a step, with its own base"
    )

    def write(output: Path, record: Mapping[str, object]) -> None:
        for part, folder in ((model, output), (model.base, output / BASE_FOLDER)):
            if not is_saved(folder):
                save_checkpoint(part, tokenizer, folder, record=record)

    return NewDrafter(numbers, text, write)
