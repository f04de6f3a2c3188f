"""Flags of `lightstride bench`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import arg

from lightstride.config.base import Model, ModelCommand, OptionalModel, Output, require


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ModelCommand):
    """Measure how fast a model is and what memory it takes."""

    example: ClassVar[str] = "lightstride bench smollm2-135m --batch 1 --prompt 32"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    against: OptionalModel = None
    """A second model, run in turn with the first; ratios are shown."""
    batch: Annotated[tuple[int, ...], arg(metavar="N [N ...]")] = (1, 8, 32)
    """Sequences at once."""
    prompt: Annotated[tuple[int, ...], arg(metavar="N [N ...]")] = (32, 512)
    """Lengths of the prompts, in tokens."""
    new_tokens: int = 64
    """Tokens written after each prompt."""
    repeats: int = 5
    """Runs of each setting; the median counts."""
    seed: int = 0
    """Seed of the prompts."""
    output: Output = "bench"
    """Folder for result.json, which replaces one that is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("batch", "prompt"):
            given = bool(getattr(self, flag))
            require(given, f"--{flag}", "without a number", "at least 1 each")
