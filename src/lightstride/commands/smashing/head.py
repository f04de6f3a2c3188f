"""What `lightstride smash --from-head` does: a published draft head becomes our checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lightstride.checkpoint import is_saved, save_headed
from lightstride.commands.smashing.facts import NewDrafter, head_facts
from lightstride.commands.smashing.published import take_published
from lightstride.config import SmashRunConfig
from lightstride.models.opening.load import load_model, load_tokenizer, local_folder
from lightstride.smash.model.headed import open_head


def take_head(config: SmashRunConfig, source: str, device: str, dtype: torch.dtype) -> NewDrafter:
    """The head, which is to be written with the name of its base.

    A file is HAMburger's own checkpoint instead.  Raises ModelError for a head that is not whole
    or not for this base.
    """
    if Path(source).is_file():
        return take_published(config, source, device, dtype)
    tokenizer = load_tokenizer(config.model)
    base = load_model(
        config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )
    head = open_head(local_folder(source), base)
    text = (
        f"{config.output}: {config.model} with the EAGLE-3 head of {source}, which drafts "
        f"{head.config.draft_vocab_size} tokens from the states after blocks "
        f"{', '.join(map(str, head.config.taps))}"
    )

    def write(output: Path, record: Mapping[str, object]) -> None:
        if not is_saved(output):
            save_headed(head, base, config.model, tokenizer, output, record=record)

    return NewDrafter({**head_facts(head, base), "head": source}, text, write)
