"""Flags of `lightstride generate`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import arg

from lightstride.config.base import OPTIONAL, Model, ModelCommand, require
from lightstride.config.decoding import DecodingFlags


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
    show_steps: bool = False
    """Color the tokens of each step of the base model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.prompt), "-p", "''", "a text of at least one character")
        require(not (self.raw and self.system), "--system", "with --raw", "used without --raw")
