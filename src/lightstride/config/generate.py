"""Flags of `lightstride generate` and `lightstride serve`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import Model, ModelCommand, require, require_choice

Mode = Literal["trust", "verify", "lossless", "ar"]


@dataclass(frozen=True, kw_only=True)
class SamplingCommand(ModelCommand):
    """Flags of every command that lets a model write."""

    mode: Annotated[
        Mode | None,
        arg(metavar="{trust,verify,lossless,ar}", help_behavior_hint="(default: the model's own)"),
    ] = None
    """How a smashed model decodes: trust its stop head, verify, lossless, or one token a step."""
    confidence: Annotated[
        float | None, arg(metavar="P", help_behavior_hint="(default: the mode's)")
    ] = None
    """How sure a smashed model must be to say one more token in a step, above 0 up to 1: by default
    0.9 for trust, 0.3 for verify, 0.03 for a guess that lossless checks."""
    lookup: int = 8
    """Most tokens of a checked step that may be copied from the text before; 0 is none."""
    tree: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: 16, fewer in batches)", constructor=int),
    ] = None
    """Most tokens that lossless checks at once for a prompt, as a tree of likely continuations."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more random."""
    top_k: int = 0
    """Draw from so many likeliest tokens; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Leave out tokens with less than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, what was said before becomes less likely."""
    seed: int = 0
    """Seed of the draw: same seed, same answer."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        if self.mode is not None:
            require_choice("--mode", self.mode, Mode)
        sure = self.confidence
        require(sure is None or 0 < sure <= 1, "--confidence", sure, "above 0 and at most 1")
        require(self.tree is None or self.tree >= 1, "--tree", self.tree, "at least 1")
        require(self.lookup >= 0, "--lookup", self.lookup, "0 or more")
        require(self.max_new_tokens >= 1, "--max-new-tokens", self.max_new_tokens, "at least 1")
        require(self.temperature >= 0, "--temperature", self.temperature, "0 or more")
        require(self.top_k >= 0, "--top-k", self.top_k, "0 or more")
        require(0 < self.top_p <= 1, "--top-p", self.top_p, "above 0 and at most 1")
        require(0 <= self.min_p < 1, "--min-p", self.min_p, "0 or more and below 1")
        penalty = self.repetition_penalty
        require(penalty > 0, "--repetition-penalty", penalty, "above 0")
        require("" not in self.stop, "--stop", "''", "a text of at least one character")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingCommand):
    """Let a model answer."""

    example: ClassVar[str] = "lightstride generate smollm2-135m -p 'What is a lighthouse for?'"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    prompt: Annotated[str, arg(aliases=("-p",), metavar="TEXT")]
    """What to say to the model; - reads it from standard input."""
    system: Annotated[str | None, arg(metavar="TEXT")] = None
    """A system message to put before the prompt."""
    raw: bool = False
    """Continue the prompt as it stands, without the model's chat template."""
    show_steps: bool = False
    """Color the tokens of each step of the base model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.prompt), "-p", "''", "a text of at least one character")
        require(not (self.raw and self.system), "--system", "with --raw", "used without --raw")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(SamplingCommand):
    """Serve a model over HTTP, as the OpenAI API does."""

    example: ClassVar[str] = "lightstride serve smollm2-135m --port 8000"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine alone."""
    port: int = 8000
    """Port to listen on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.port <= 65535, "--port", self.port, "between 0 and 65535")
