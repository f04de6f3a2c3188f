"""What the config.json of a smashed model may say: types and ranges, before anything is built.

A file of a newer version may hold more; what stands here must be as it says.  Grafts once merged
into gists, columns that saw their segment, or with adapters on the base: of those only the drafts
are left.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lightstride.errors import ModelError

Width = Annotated[int, Meta(ge=1, le=1 << 20)]
Few = Annotated[int, Meta(ge=1, le=64)]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]


class SmashFields(msgspec.Struct):
    """The fields of `SmashConfig`, with what they may be."""

    base: str
    hidden_size: Width
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=10_000)]
    base_fingerprint: str = ""
    base_model_type: str = ""
    max_segment: Few = 4
    taps: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1, max_length=64)] | None = (
        None
    )
    embedder_heads: Width | None = None
    micro_layers: Few = 1
    micro_heads: Width = 4
    micro_kv_heads: Width = 4
    micro_head_dim: Width = 16
    micro_channels: Width = 128
    micro_rope: dict[str, bool | int | float | str | None] | None = None
    micro_norm: bool = True
    micro_epsilon: Annotated[float, Meta(ge=0, le=1)] = 1e-5
    micro_vocab_size: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    stop_head: Literal["linear", "mlp"] = "linear"
    calibration: list[Annotated[list[Weight], Meta(min_length=2, max_length=16)]] | None = None
    mode: Literal["lossless", "ar", "trust"] = "lossless"

    def __post_init__(self) -> None:
        if self.micro_vocab_size is not None and self.micro_vocab_size > self.vocab_size:
            raise ValueError(
                f"micro_vocab_size {self.micro_vocab_size} is more than the "
                f"{self.vocab_size} tokens of vocab_size"
            )


GONE = ("gist", "adapter_rank", "adapter_alpha")
"""Fields of grafts that merged into gists, or with adapters."""


def of_today(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without fields that are gone; grafts that would merge with them only draft."""
    found = {name: value for name, value in document.items() if name not in GONE}
    if document.get("gist") or document.get("adapter_rank"):
        found["embedder_heads"] = None
    merges = found.get("embedder_heads") is not None
    if found.get("mode") == "verify" or (found.get("mode") == "trust" and not merges):
        found["mode"] = "lossless"
    return found


def check_fields(document: Mapping[str, object], where: str) -> None:
    """Raise ModelError that names the field which is not what it may be."""
    try:
        msgspec.convert(document, SmashFields)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {error}") from error
