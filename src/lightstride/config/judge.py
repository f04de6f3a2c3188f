"""Flags of `lightstride evaluate`, `lightstride bench` and `lightstride report`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from lightstride.config.base import (
    Command,
    Model,
    ModelCommand,
    OptionalPath,
    OptionalSource,
    require,
)

OptionalModel = Annotated[str | None, arg(metavar="MODEL")]
Output = Annotated[str, arg(aliases=("-o",), metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelCommand):
    """Measure what a model knows: perplexity and the standard tasks."""

    example: ClassVar[str] = "lightstride evaluate smollm2-135m --perplexity pydoc"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    against: OptionalModel = None
    """A second model: both are measured, and what the first retains of the second is shown."""
    perplexity: OptionalSource = None
    """Text to measure perplexity on."""
    window: int = 2048
    """Length of the perplexity windows, in tokens."""
    stride: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: the window)", constructor=int)
    ] = None
    """Tokens between the starts of two windows; smaller than the window, each sees more context."""
    every: int = 1
    """Measure each N-th window only."""
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK[,TASK ...]")] = ()
    """Tasks of the lm-eval harness."""
    task_data: OptionalPath = None
    """Folder with the tasks' data, so that no network is needed."""
    limit: Annotated[int | None, arg(metavar="N", constructor=int)] = None
    """Questions per task; without it, all."""
    num_fewshot: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: the task's own)", constructor=int),
    ] = None
    """Solved examples before each question."""
    batch_size: int = 8
    """Sequences at once."""
    output: Output = "evaluation"
    """Folder for result.json, which replaces one that is there."""

    def __post_init__(self) -> None:
        asked = self.perplexity is not None or bool(self.tasks)
        require(asked, "evaluate", "without --perplexity or --tasks", "given at least one of them")
        require(self.window >= 2, "--window", self.window, "at least 2")
        stride = self.window if self.stride is None else self.stride
        allowed = f"between 1 and the window, {self.window}"
        require(1 <= stride <= self.window, "--stride", stride, allowed)
        require(self.every >= 1, "--every", self.every, "at least 1")
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, "at least 1")
        shots = self.num_fewshot
        require(shots is None or shots >= 0, "--num-fewshot", shots, "0 or more")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, whether they were separated by commas or by blanks."""
        return tuple(name for group in self.tasks for name in group.split(",") if name)


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
        for flag in ("batch", "prompt"):
            values = getattr(self, flag)
            given = " ".join(map(str, values)) or "without a number"
            require(bool(values) and min(values) >= 1, f"--{flag}", given, "at least 1 each")
        require(self.new_tokens >= 2, "--new-tokens", self.new_tokens, "at least 2")
        require(self.repeats >= 1, "--repeats", self.repeats, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Command):
    """Turn folders of results into one page with pictures."""

    example: ClassVar[str] = "lightstride report smollm2-pruned -o report.html"

    folder: Annotated[Positional[tuple[str, ...]], arg(metavar="DIR [DIR ...]")]
    """Folders with result.json and search.jsonl files."""
    output: Annotated[str, arg(aliases=("-o",), metavar="FILE")] = "report.html"
    """The page to write; its pictures go beside it."""
