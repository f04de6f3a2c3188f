"""A base and a smashed model on it, saved side by side."""

from pathlib import Path

from helpers.smash_toys import BASES, sharp, toy
from helpers.toys import byte_tokenizer
from lightstride.checkpoint import save_checkpoint
from lightstride.models.opening.load import load_model


def save_folders(folder: Path) -> tuple[Path, Path]:
    """The folders of a base and of a smashed checkpoint on it."""
    tokenizer = byte_tokenizer()
    save_checkpoint(sharp(BASES["llama"]()), tokenizer, folder / "base")
    base = load_model(str(folder / "base"))
    model = toy(base, micro_vocabulary=range(0, 256, 3))
    save_checkpoint(model, tokenizer, folder / "smashed", record={"kind": "smashed"})
    return folder / "base", folder / "smashed"
