"""What `lightstride smash --from-head` does: a published draft head becomes our checkpoint."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from lightstride.checkpoint import save_headed
from lightstride.commands.outputs import save_result
from lightstride.commands.smashing.published import take_published
from lightstride.config import SmashRunConfig
from lightstride.distributed import rank
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model, load_tokenizer, local_folder
from lightstride.smash.model.headed import open_head


def take_head(
    config: SmashRunConfig, source: str, device: str, dtype: torch.dtype
) -> Mapping[str, object]:
    """Write the head with the name of its base; the result, as in `result.json`.

    A file is HAMburger's own checkpoint instead.  Of several processes the first alone writes.
    Raises ModelError for a head that is not whole or not for this base.
    """
    if Path(source).is_file():
        return take_published(config, source, device, dtype)
    tokenizer = load_tokenizer(config.model)
    base = load_model(
        config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )
    head = open_head(local_folder(source), base)
    output = Path(config.output)
    numbers: dict[str, object] = {
        "drafter": "eagle3",
        "head": source,
        "base": fingerprint(base),
        "head_parameters": sum(each.numel() for each in head.parameters()),
        "draft_vocabulary": head.config.draft_vocab_size,
        "taps": list(head.config.taps),
        "positions": head.config.max_positions,
    }
    if rank() > 0:
        return numbers
    record = {"kind": "smash", "config": config.as_dict()}
    save_headed(head, base, config.model, tokenizer, output, record=record)
    sys.stdout.write(
        f"{output}: {config.model} with the EAGLE-3 head of {source}, which drafts "
        f"{head.config.draft_vocab_size} tokens from the states after blocks "
        f"{', '.join(map(str, head.config.taps))}\n"
    )
    return save_result("smash", config, numbers)
