"""Flags of `lightstride smash`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import (
    FromPreset,
    Model,
    OptionalPath,
    PresetCommand,
    require,
    require_choice,
)

LossName = Literal["kl", "ce"]
Grafts = Literal["thin", "paper"]
DrafterName = Literal["micro", "eagle3"]
KvBy = Literal["head", "block"]
OptionalShare = Annotated[
    float | None, arg(metavar="S", help_behavior_hint="(default: the preset's)", constructor=float)
]
OptionalHead = Annotated[str | None, arg(metavar="HEAD", help_behavior_hint="(default: none)")]


@dataclass(frozen=True, kw_only=True)
class SmashRunConfig(PresetCommand):
    """Teach a chat model to emit several tokens a step, and plan which KV entries it keeps."""

    command: ClassVar[str] = "smash"
    example: ClassVar[str] = (
        "lightstride smash smollm2-135m -o smollm2-smashed --prompts self --preset demo"
    )

    model: Model
    """The chat model: a hub id, a folder (also a pruned one), a .gguf file, or smollm2-135m."""
    output: Annotated[str, arg(aliases=("-o",), metavar="DIR")]
    """Folder for the result, new or empty: the grafts, and the name of the model they belong to."""
    prompts: Annotated[str, arg(metavar="SOURCE")] = "self"
    """What to ask the model: files, folders or hub data sets of prompts, or self (it writes its
    own questions); several with commas."""
    num_prompts: FromPreset = None
    """Most prompts to use, of all sources together."""
    answer_tokens: FromPreset = None
    """Most tokens of an answer."""
    sampled_share: float = 0.2
    """Share of answers that are sampled, at temperature 0.8; the others are greedy."""
    held_out: float = 0.05
    """Share of the answers that only judge and calibrate."""
    answer_batch: int = 32
    """Answers written at once."""
    drafter: DrafterName = "micro"
    """What drafts: micro, a micro decoder inside the step; or eagle3, an EAGLE-3 head, which vLLM,
    SGLang and llama.cpp load too (lightstride export)."""
    draft_steps: FromPreset = None
    """Tokens of the chains that an eagle3 head is trained on, from 3 to 7."""
    draft_window: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: all)", constructor=int)
    ] = None
    """How many of the latest tokens an eagle3 head attends to."""
    grafts: Grafts = "thin"
    """What is added: thin, a small micro decoder that drafts; or as published (paper), a larger
    one, and an embedder that merges the tokens of a step into one KV entry (--mode trust)."""
    max_segment: FromPreset = None
    """Most tokens in one step."""
    micro_layers: FromPreset = None
    """Layers of the micro decoder."""
    micro_vocab: FromPreset = None
    """Tokens that micro steps, or a head, can draft: so many of the most frequent ones."""
    start_from: OptionalPath = None
    """Grafts of the same base and sizes to go on from, instead of new ones: a smashed model; with
    eagle3 a head of the same hidden size and vocabulary, whose own draft vocabulary stays."""
    from_head: OptionalHead = None
    """A published EAGLE-3 head of this model, a folder or hub id: it becomes the drafter, and
    nothing is trained. Or HAMburger's own checkpoint, a .safetensors file."""
    train_base: bool = False
    """Let the base learn too; then it is saved with the grafts, and a plain model is trained on
    the same data for comparison."""
    loss: LossName = "kl"
    """What is learned from the base: its distributions, or its likeliest tokens."""
    steps: FromPreset = None
    """Updates of the weights."""
    minutes: Annotated[
        float | None, arg(metavar="M", help_behavior_hint="(default: none)", constructor=float)
    ] = None
    """Most minutes of training, answers not counted; the steps then end sooner."""
    learning_rate: float = 3e-3
    """Largest learning rate of the grafts."""
    base_rate: float = 2e-5
    """Largest learning rate of the base, where it learns."""
    row_tokens: FromPreset = None
    """Tokens of a row of answers packed together."""
    rows: FromPreset = None
    """Rows of a batch."""
    accumulate: FromPreset = None
    """Batches of a step, over all processes."""
    merged_share: OptionalShare = None
    """Share of batches from which merging is learned too (--grafts paper); the others only teach
    drafts."""
    short_share: OptionalShare = None
    """Share of readings that teach only the first one or two further tokens of drafts, where most
    drafts end."""
    own_cuts_share: float = 0.5
    """Share of the merged batches cut by the model's own drafts, from a third of the training
    (--grafts paper)."""
    cache_gib: float = 4.0
    """Memory for the base's hidden states of the answers, kept from epoch to epoch if it fits,
    in GiB."""
    feed_own_share: float = 0.0
    """Share of tokens inside a draft that are fed as the model would draft them."""
    kv: Annotated[tuple[float, ...], arg(metavar="S", help_behavior_hint="(default: none)")] = ()
    """Budgets of KV entries a token, as 0.5 0.35: for each a memory plan is searched, which says
    what every KV head keeps of old tokens; the first is then the model's own.  With a model that
    is smashed already, nothing but its memory plans is made."""
    kv_context: int = 1000
    """Tokens of a text at which those budgets are counted."""
    kv_by: KvBy = "head"
    """What a plan decides for: each KV head; or whole blocks, which keep all or a window that
    slides, one size in a model: what lightstride export --to sliding writes for other engines."""
    seed: int = 0
    """Seed of everything random: same seed, same result."""
    work: OptionalPath = None
    """Folder for what a killed run can go on from; without it, the output folder's name + .work."""
    answers: OptionalPath = None
    """Folder for answers and scores, where several runs are to share them; else the work folder."""
    resume: bool = False
    """Go on from what is in the work folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.prompts.strip(", ")), "--prompts", "''", "a source of prompts")
        require_choice("--loss", self.loss, LossName)
        require_choice("--grafts", self.grafts, Grafts)
        require_choice("--drafter", self.drafter, DrafterName)
        self.check_drafter()
        for flag in COUNTS:
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')}", value, "at least 1")
        for flag in (
            "sampled_share",
            "merged_share",
            "short_share",
            "own_cuts_share",
            "feed_own_share",
        ):
            value = getattr(self, flag)
            allowed = value is None or 0 <= value <= 1
            require(allowed, f"--{flag.replace('_', '-')}", f"{value}", "from 0 to 1")
        require(
            not (self.from_head and (self.start_from or self.train_base or self.kv)),
            "--from-head",
            self.from_head,
            "without --start-from, --train-base and --kv: nothing is trained or searched",
        )
        require(0 < self.held_out < 1, "--held-out", f"{self.held_out:g}", "above 0 and below 1")
        for flag in ("learning_rate", "base_rate", "minutes"):
            value = getattr(self, flag)
            require(value is None or value > 0, f"--{flag.replace('_', '-')}", value, "above 0")
        for budget in self.kv:
            require(0 < budget <= 1, "--kv", f"{budget:g}", "above 0 and at most 1")

        require_choice("--kv-by", self.kv_by, KvBy)
        require(
            bool(self.kv) or self.kv_by == "head", "--kv-by", self.kv_by, "left out without --kv"
        )

    def check_drafter(self) -> None:
        """Refuse flags of the other drafter: they would be ignored."""
        self.check_left_out(
            MICRO_ONLY if self.drafter == "eagle3" else EAGLE3_ONLY, f"--drafter {self.drafter}"
        )
        if self.grafts == "thin":
            self.check_left_out(PAPER_ONLY, "--grafts thin, which merges nothing")
        steps, window = self.draft_steps, self.draft_window
        require(steps is None or 3 <= steps <= 7, "--draft-steps", steps, "from 3 to 7")
        require(window is None or window >= 1, "--draft-window", window, "at least 1")
        starts = self.drafter == "eagle3" and self.start_from is not None
        require(
            not (starts and self.micro_vocab is not None),
            "--micro-vocab",
            self.micro_vocab,
            "left out with --start-from: the head keeps its own vocabulary",
        )

    def check_left_out(self, flags: tuple[str, ...], beside: str) -> None:
        """Refuse flags that would be ignored beside another."""
        for flag in flags:
            default = self.__dataclass_fields__[flag].default
            name, value = f"--{flag.replace('_', '-')}", getattr(self, flag)
            require(value == default, name, value, f"left out with {beside}")

    @property
    def left_open(self) -> tuple[str, ...]:
        """Fields of the other drafter, of merging, and the vocabulary of a head that has one."""
        if self.drafter == "micro":
            return EAGLE3_ONLY if self.grafts == "paper" else (*EAGLE3_ONLY, *PAPER_ONLY)
        return MICRO_ONLY if self.start_from is None else (*MICRO_ONLY, "micro_vocab")

    @property
    def answers_folder(self) -> str:
        """Where answers and scores are kept."""
        return self.answers or self.work_folder

    @property
    def work_folder(self) -> str:
        """Where the training's checkpoint is kept."""
        return self.work or f"{self.output.rstrip('/')}.work"


EAGLE3_ONLY = ("draft_steps", "draft_window")
"""Flags of a head alone."""
PAPER_ONLY = ("merged_share", "own_cuts_share")
"""Flags of grafts that merge."""
ONCE_FLAGS = ("adapter_rank", *PAPER_ONLY)
"""What work folders of earlier versions may have in mind where it is no flag, or not asked for."""
MICRO_ONLY = (
    "grafts",
    "max_segment",
    "micro_layers",
    "train_base",
    "base_rate",
    *PAPER_ONLY,
    "short_share",
    "feed_own_share",
)
"""Flags of a micro decoder alone."""
COUNTS = ("num_prompts", "micro_vocab", "steps", "accumulate")
