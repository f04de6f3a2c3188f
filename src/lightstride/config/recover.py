"""Flags of `lightstride recover`."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from lightstride.config.base import (
    OPTIONAL,
    FromPreset,
    OptionalPath,
    OptionalSize,
    OptionalSource,
    PresetCommand,
    require,
    require_choice,
)
from lightstride.config.values import parse_size

LossOn = Literal["answers", "all"]
ClockName = Literal["wall", "processor"]
OptimizerName = Literal["adam", "factored"]


@dataclass(frozen=True, kw_only=True)
class RecoverConfig(PresetCommand):
    """Let a pruned model learn from its dense one, in the time there is; its shape stays."""

    command: ClassVar[str] = "recover"
    example: ClassVar[str] = "lightstride recover smollm2-pruned -o smollm2-recovered --minutes 60"

    model: Annotated[Positional[str], arg(metavar="DIR")]
    """The pruned model: a folder that prune wrote."""
    output: Annotated[str, arg(aliases=("-o",), metavar="DIR")]
    """Folder for the result, new or empty; of the same shape and format as the pruned model."""
    minutes: Annotated[
        float | None,
        arg(metavar="M", help_behavior_hint="(default: the preset's)", constructor=float),
    ] = None
    """Minutes of learning; opening and measuring are not counted."""
    clock: ClockName = "wall"
    """What --minutes counts: time, or processor time by thread, for a machine that others use."""
    teacher: OptionalSource = None
    """The dense model; without it, the one that the pruned model's record names."""
    text: Annotated[tuple[str, ...], arg(metavar="SOURCE[:WEIGHT] ...")] = ("pydoc",)
    """Text to learn from: files, folders, hub data sets or pydoc, each with a weight (1)."""
    answers: Annotated[
        tuple[str, ...], arg(metavar="PATH[:WEIGHT] ...", help_behavior_hint=OPTIONAL)
    ] = ()
    """Answers to learn from, each source with a weight (1): folders of smash's, with the dense
    model's own answers or the pruned model's, or instruction data with answers."""
    loss_on: LossOn = "all"
    """Which tokens of --answers count: the answers alone, or the prompts too."""
    held_out: OptionalSource = None
    """Text for the perplexity; without it, other documents of the first text."""
    tokens: FromPreset = None
    """Most tokens to learn from; they are read again if there is time."""
    held_out_tokens: FromPreset = None
    """Tokens for the perplexity, each time that it is measured."""
    window: FromPreset = None
    """Length of the rows, in tokens."""
    passes: int = 8
    """Most passes over the text."""
    rank: int = 0
    """Rank of updates that are merged at the end; 0 lets whole weights learn."""
    learn_head: bool = False
    """Let the output layer learn too, and with it the embedding where the two share weights."""
    checkpoint_activations: bool = False
    """Keep the blocks' inputs alone for the backward, and compute the rest there again."""
    learning_rate: float = 3e-4
    """Largest learning rate."""
    optimizer: OptimizerName = "adam"
    """Adam takes 12 bytes a weight; with a factored second moment, 6."""
    step_tokens: int = 1024
    """Tokens of a step, over all processes."""
    top_k: int = 64
    """Likeliest tokens of the dense model that are told apart; the rest counts as one more."""
    cache_gib: float = 2.0
    """Disk for what the dense model said, for further passes, in GiB."""
    memory: OptionalSize = None
    """Most memory of a process, such as 20GiB: where the dense model does not fit beside learning,
    it is read from disk block by block, for the rows of many steps at a time."""
    seed: int = 0
    """Seed of everything random."""
    work: OptionalPath = None
    """Folder for what a killed run can go on from; without it, the output folder's name + .work."""
    resume: bool = False
    """Go on from what is in the work folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.text or self.answers), "--text", "''", "a source, or --answers given")
        require_choice("--loss-on", self.loss_on, LossOn)
        require_choice("--clock", self.clock, ClockName)
        require_choice("--optimizer", self.optimizer, OptimizerName)
        given = [("--text", source) for source in self.text]
        given += [("--answers", source) for source in self.answers]
        for flag, source in given:
            name, weight = split_weight(source)
            require(
                bool(name) and 0 < weight < math.inf, flag, repr(source), "SOURCE or SOURCE:WEIGHT"
            )
        for flag in ("minutes", "learning_rate", "cache_gib"):
            value = getattr(self, flag)
            require(value is None or value > 0, f"--{flag.replace('_', '-')}", value, "above 0")
        if self.memory is not None:
            parse_size("--memory", self.memory)
        require(
            not (self.rank and self.learn_head), "--learn-head", "with --rank", "without a rank"
        )
        for flag in ("tokens", "held_out_tokens", "step_tokens", "top_k"):
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')}", value, "at least 1")

    @property
    def work_folder(self) -> str:
        """Where the training's checkpoint is kept."""
        return self.work or f"{self.output.rstrip('/')}.work"


def split_weight(source: str) -> tuple[str, float]:
    """A source and its weight: 1 unless a number stands behind the last colon."""
    name, colon, last = source.rpartition(":")
    try:
        return (name, float(last)) if colon else (source, 1.0)
    except ValueError:
        return source, 1.0
