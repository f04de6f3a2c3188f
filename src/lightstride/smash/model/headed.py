"""A checkpoint of a draft head: the name of its base, and the head in the sub-folder `head`.

    config.json     this config
    head/           the head in the flat layout, as engines read it
    tokenizer ...   the base's

The base is not stored again; its fingerprint makes sure that it is the one the head drafts for.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lightstride.errors import ModelError
from lightstride.files.read import read_json
from lightstride.generate import Mode
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.smash.model.config import SPECIAL_TOKENS
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.eagle3_files import read_head, write_head
from lightstride.smash.model.graft_files import relative_base

HEAD = "head"
"""The sub-folder of the head."""


class HeadedConfig(PreTrainedConfig):
    """Identity of the base, and what kind of head drafts for it."""

    model_type = "lightstride_headed"

    base: str = ""
    """Where the base is: a hub id, a built-in name, or a folder (relative to this checkpoint)."""
    base_fingerprint: str = ""
    """Fingerprint of the base's weights; another base is refused."""
    base_model_type: str = ""
    drafter: Literal["eagle3"] = "eagle3"
    hidden_size: int = 64
    vocab_size: int = 256
    num_hidden_layers: int = 8
    max_position_embeddings: int | None = None
    mode: Mode = "lossless"
    """Default decoding mode."""


class HeadedFields(msgspec.Struct):
    """The fields of `HeadedConfig`, with what they may be."""

    base: Annotated[str, Meta(min_length=1)]
    base_fingerprint: Annotated[str, Meta(min_length=1)]
    drafter: Literal["eagle3"]
    mode: Literal["lossless", "ar"] = "lossless"


def read_headed(folder: Path) -> HeadedFields:
    """The config in a folder; its base is named so that it can be opened from here."""
    path = folder / "config.json"
    document = read_json(path, dict[str, object], ModelError)
    try:
        fields = msgspec.convert(document, HeadedFields)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from error
    beside = folder / fields.base
    if beside.is_dir():
        fields.base = str(beside.resolve())
    return fields


def open_head(folder: Path, base: PreTrainedModel) -> Eagle3Head:
    """The head in a folder of its own, for this base, in its precision and on its device.

    Raises ModelError for a head whose hidden size or vocabulary is not the base's.
    """
    geometry = adapter_for(base.config).geometry(base.config)
    head = read_head(folder, num_blocks=geometry.num_blocks)
    for key, name in (("hidden_size", "hidden size"), ("vocab_size", "vocabulary")):
        own, wanted = getattr(head.config, key), getattr(geometry, key)
        if own != wanted:
            raise ModelError(
                f"{folder}: the head is for a {name} of {own}; that of the base "
                f"{base.name_or_path or 'given'} is {wanted}"
            )
    return head.requires_grad_(False).to(device=base.device, dtype=base.dtype)


def check_fingerprint(fields: HeadedFields, base: PreTrainedModel) -> None:
    """Refuse a base that the head was not made for."""
    given = fingerprint(base)
    if given != fields.base_fingerprint:
        raise ModelError(
            f"the head belongs to the base {fields.base!r} ({fields.base_fingerprint}); "
            f"what is there now is another ({given})"
        )


def write_headed(
    folder: Path, target: Path, head: Eagle3Head, base: PreTrainedModel, name: str
) -> None:
    """Write config and head into a folder, which is to become `target`."""
    geometry = adapter_for(base.config).geometry(base.config)
    config = HeadedConfig(
        base=relative_base(name, target),
        base_fingerprint=fingerprint(base),
        base_model_type=base.config.model_type,
        drafter="eagle3",
        hidden_size=geometry.hidden_size,
        vocab_size=geometry.vocab_size,
        num_hidden_layers=geometry.num_blocks,
        max_position_embeddings=getattr(base.config, "max_position_embeddings", None),
        mode="lossless",
    )
    for key in SPECIAL_TOKENS:
        setattr(config, key, getattr(base.config, key, None))
    config.save_pretrained(folder)
    write_head(
        head,
        folder / HEAD,
        layout="flat",
        base=name,
        architectures=list(base.config.architectures or []),
        num_blocks=geometry.num_blocks,
    )


AutoConfig.register(HeadedConfig.model_type, HeadedConfig, exist_ok=True)
