"""Flags of `lightstride evaluate`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import (
    OPTIONAL,
    Model,
    ModelCommand,
    OptionalModel,
    OptionalPath,
    OptionalSize,
    OptionalSource,
    Output,
    require,
    require_choice,
)
from lightstride.config.values import parse_size

Yardstick = Literal["q8_0", "q4_k_m"]
MOST_INSTRUCTIONS = 1000
"""Of some of the 13 kinds there are 144 different ones."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelCommand):
    """Measure what a model knows: perplexity and the standard tasks."""

    example: ClassVar[str] = "lightstride evaluate smollm2-135m --perplexity pydoc"

    model: Model
    """The model: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    against: OptionalModel = None
    """A second model: both are measured, with the share that the first retains of the second."""
    perplexity: OptionalSource = None
    """Text to measure perplexity on."""
    fidelity: OptionalSource = None
    """Text on which the distributions of MODEL and --against are compared, and last words asked."""
    loops: OptionalSource = None
    """Prompts whose greedy answers are looked at: how many loop, of MODEL and of --against."""
    instructions: Annotated[
        int | None, arg(metavar="N", help_behavior_hint=OPTIONAL, constructor=int)
    ] = None
    """Made instructions whose answers a program checks: how many MODEL and --against follow."""
    kv: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: the model's own)")
    ] = None
    """With --loops or --instructions: the budget of the memory plan that MODEL answers on."""
    yardsticks: Annotated[
        tuple[Yardstick, ...],
        arg(metavar="{q8_0,q4_k_m} ...", help_behavior_hint="(default: none)"),
    ] = ()
    """With --fidelity: --against quantized so is held against itself too, for comparison."""
    window: int = 2048
    """Length of the perplexity windows, in tokens."""
    stride: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: the window)", constructor=int)
    ] = None
    """Tokens between the starts of two windows; smaller than the window, each sees more context."""
    every: int = 1
    """Measure each N-th window only."""
    tasks: Annotated[
        tuple[str, ...], arg(metavar="TASK[,TASK ...]", help_behavior_hint=OPTIONAL)
    ] = ()
    """Tasks of the lm-eval harness."""
    task_data: OptionalPath = None
    """Folder with the tasks' data, so that no network is needed."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint=OPTIONAL, constructor=int)] = (
        None
    )
    """Most questions of a task (else all), passages of --fidelity (else 500) and prompts of --loops
    (else 200)."""
    num_fewshot: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: the task's own)", constructor=int),
    ] = None
    """Solved examples before each question."""
    memory: OptionalSize = None
    """Most memory to use, such as 20GiB: a model too large for it is read block by block, once for
    a text and once for all tasks; answers (--loops, gsm8k) and --yardsticks need all of it."""
    batch_size: int = 8
    """Sequences at once."""
    output: Output = "evaluation"
    """Folder for result.json, which replaces one that is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.is_compared or self.perplexity is not None or bool(self.tasks)
        ways = "--perplexity, --tasks, --fidelity, --loops or --instructions"
        require(asked, "evaluate", f"without {ways}", "given at least one of them")
        alone = self.is_compared and self.against is None
        pairs = "--fidelity, --loops or --instructions"
        require(not alone, pairs, "without --against", "held against a model")
        answers = self.loops is not None or self.instructions is not None
        require(self.kv is None or answers, "--kv", "without answers", "for those of --loops")
        require(self.kv is None or 0 < self.kv <= 1, "--kv", self.kv, "above 0 and at most 1")
        count = self.instructions
        allowed = f"between 1 and {MOST_INSTRUCTIONS}"
        within = count is None or 1 <= count <= MOST_INSTRUCTIONS
        require(within, "--instructions", count, allowed)
        measured = self.fidelity is not None or not self.yardsticks
        require(measured, "--yardsticks", "without --fidelity", "given with it")
        for name in self.yardsticks:
            require_choice("--yardsticks", name, Yardstick)
        if self.memory is not None:
            parse_size("--memory", self.memory)
        stride = self.window if self.stride is None else self.stride
        allowed = f"between 1 and the window, {self.window}"
        require(1 <= stride <= self.window, "--stride", stride, allowed)
        require(self.every >= 1, "--every", self.every, "at least 1")
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, "at least 1")
        shots = self.num_fewshot
        require(shots is None or shots >= 0, "--num-fewshot", shots, "0 or more")

    @property
    def is_compared(self) -> bool:
        """Whether the models are held against each other token by token, or by their answers."""
        return (self.fidelity, self.loops, self.instructions) != (None, None, None)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, whether they were separated by commas or by blanks."""
        return tuple(name for group in self.tasks for name in group.split(",") if name)
