"""Flags of `lightstride generate`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import OPTIONAL, Model, ModelCommand, require, require_choice
from lightstride.config.decoding import DecodingFlags

KvType = Literal["model", "int8"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DecodingFlags, ModelCommand):
    """Let a model answer."""

    example: ClassVar[str] = "lightstride generate smollm2-135m -p 'What is a lighthouse for?'"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    prompt: Annotated[str, arg(aliases=("-p",), metavar="TEXT")]
    """What to say to the model; - reads it from standard input."""
    system: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint=OPTIONAL)] = None
    """A system message to put before the prompt."""
    raw: bool = False
    """Continue the prompt as it stands, without the model's chat template."""
    kv: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: the model's own)")
    ] = None
    """KV entries a token: the budget of one of the model's memory plans; 1 is the full cache."""
    kv_dtype: KvType = "model"
    """Precision of the KV cache: the model's own, or int8."""
    show_steps: bool = False
    """Color the tokens of each step of the base model."""

    def __post_init__(self) -> None:
        self.check_fields()
        super().__post_init__()
        require(bool(self.prompt), "-p", "''", "a text of at least one character")
        require(self.kv is None or 0 < self.kv <= 1, "--kv", self.kv, "above 0 and at most 1")
        require_choice("--kv-dtype", self.kv_dtype, KvType)
        require(not (self.raw and self.system), "--system", "with --raw", "used without --raw")
