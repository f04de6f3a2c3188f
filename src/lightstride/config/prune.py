"""Flags of `lightstride prune`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from lightstride.config.base import (
    PRESET,
    FromPreset,
    Model,
    OptionalPath,
    OptionalSize,
    OptionalSource,
    PresetCommand,
    Source,
    require,
    require_choice,
)
from lightstride.config.values import parse_size

TargetName = Literal["any", "hf", "vllm", "gguf", "decilm", "uniform"]
Accumulation = Literal["none", "median", "expectation"]
Split = Literal["free", "fixed"]
TokenWeights = Literal["relative", "equal"]
Search = Literal["none", "fast", "paper"]
MachineName = Literal["here", "h100", "8xmi300x", "laptop"]


@dataclass(frozen=True, kw_only=True)
class PruneConfig(PresetCommand):
    """Make a model smaller where it hurts least, one checkpoint per sparsity."""

    command: ClassVar[str] = "prune"
    preset_only: ClassVar[tuple[str, ...]] = ("early_share",)
    example: ClassVar[str] = (
        "lightstride prune smollm2-135m -o smollm2-pruned --sparsity 0.25 --preset demo"
    )

    model: Model
    """The model to prune: a hub id, a folder, a .gguf file, or smollm2-135m (built in)."""
    output: Annotated[str, arg(aliases=("-o",), metavar="DIR")]
    """Folder for the result, new or empty; several sparsities go to DIR/25, DIR/50 and so on."""
    sparsity: Annotated[tuple[float, ...], arg(metavar="S [S ...]")]
    """Share of the blocks' parameters to remove, above 0 and below 1; several from low to high."""
    target: TargetName = "any"
    """The engine that will run the result: only widths that it accepts are considered."""
    tp: int = 1
    """Devices that will share the result by tensor parallelism: widths divide by it."""
    multiple: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: the target's)", constructor=int),
    ] = None
    """FFN widths are multiples of this, or the dense width."""
    budget: Literal["params", "memory", "latency"] = "params"
    """What the sparsity is a share of: parameters, bytes with KV cache, or measured time."""
    context: int = 4096
    """Tokens of KV cache in a memory or latency budget."""
    batch: int = 1
    """Sequences at once in a memory or latency budget."""
    prefill_weight: float = 1.0
    """Prefills of the whole context that a latency budget counts."""
    decode_weight: float = 256.0
    """Decoding steps that a latency budget counts."""
    calibration: Source = "pydoc"
    """Text for the statistics: a file, a folder, a hub data set, pydoc (built in), or self."""
    search_text: OptionalSource = None
    """Text for the search; without it, other documents of the calibration source."""
    held_out: OptionalSource = None
    """Text for the perplexity before and after; without it, other documents of the same source."""
    search: Annotated[
        Search | None, arg(metavar="{none,fast,paper}", help_behavior_hint=PRESET)
    ] = None
    """How to choose widths: none (all blocks alike), fast, or the paper's evolution."""
    split: Annotated[Split | None, arg(metavar="{free,fixed}", help_behavior_hint=PRESET)] = None
    """Whether attention and FFN trade parameters freely, or lose fixed shares (as published)."""
    accumulation: Annotated[
        Accumulation | None,
        arg(metavar="{none,median,expectation}", help_behavior_hint=PRESET),
    ] = None
    """What the next block reads in the statistics: the dense model's states (none), those of one
    middling cut (median), or a mean over all widths tried (expectation)."""
    token_weights: Annotated[
        TokenWeights | None, arg(metavar="{relative,equal}", help_behavior_hint=PRESET)
    ] = None
    """How tokens count in the statistics: by errors relative to the size of their hidden states, or
    all alike."""
    correction: Annotated[
        float | None, arg(metavar="S", help_behavior_hint=PRESET, constructor=float)
    ] = None
    """Part of the error accumulated so far that each site's last refit undoes, from 0 to 1."""
    damping: float = 0.01
    """Ridge of the refit, as a share of the mean diagonal of a site's Gram matrix."""
    heal: int = 0
    """Passes of training over the calibration text after the cut, towards the dense model."""
    heal_rate: float = 1e-4
    """Largest learning rate of --heal."""
    top_k: int = 512
    """Likeliest tokens of the dense model that the search compares; the rest counts as one more."""
    cache_gib: float = 2.0
    """Memory for the dense model's answers and for cut weights during the search, in GiB."""
    calibration_tokens: FromPreset = None
    """Tokens for the statistics."""
    search_tokens: FromPreset = None
    """Tokens for the search."""
    held_out_tokens: FromPreset = None
    """Tokens for the perplexity before and after."""
    window: FromPreset = None
    """Length of the calibration windows, in tokens."""
    levels: FromPreset = None
    """Widths tried per site and round."""
    rounds: FromPreset = None
    """Rounds of the search, each with half the step of the one before."""
    generations: FromPreset = None
    """Generations of the search in each round."""
    offspring: FromPreset = None
    """Candidates in each generation."""
    seed: int = 0
    """Seed of everything random: same seed, same result."""
    work: OptionalPath = None
    """Folder for what a killed run can go on from; without it, the output folder's name + .work."""
    resume: bool = False
    """Go on from what is in the work folder."""
    memory: OptionalSize = None
    """Most memory to use, such as 20GiB: too large a model is read from disk block by block."""
    device_memory: OptionalSize = None
    """Most memory of each accelerator to use, such as 40GiB."""
    dry_run: bool = False
    """Say what the run would cost, from config.json alone: no weights are opened."""
    machine: Annotated[
        tuple[MachineName, ...],
        arg(metavar="{here,h100,8xmi300x,laptop} ...", help_behavior_hint="(default: here)"),
    ] = ()
    """Machines that --dry-run is about: this one, whose rates are measured, or known ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.sparsity), "--sparsity", "without a number", "above 0 and below 1")
        for share in self.sparsity:
            require(0 < share < 1, "--sparsity", f"{share:g}", "above 0 and below 1")
        given = " ".join(f"{share:g}" for share in self.sparsity)
        ascending = tuple(sorted(set(self.sparsity))) == self.sparsity
        require(ascending, "--sparsity", given, "ascending, each number once")
        for name, choices in (
            ("split", Split),
            ("accumulation", Accumulation),
            ("token_weights", TokenWeights),
        ):
            chosen = getattr(self, name)
            if chosen is not None:
                require_choice(f"--{name.replace('_', '-')}", chosen, choices)
        for flag in ("prefill_weight", "decode_weight"):
            weight = getattr(self, flag)
            require(weight >= 0, f"--{flag.replace('_', '-')}", f"{weight:g}", "0 or more")
        if self.correction is not None:
            given = f"{self.correction:g}"
            require(0 <= self.correction <= 1, "--correction", given, "from 0 to 1")
        require(self.damping > 0, "--damping", f"{self.damping:g}", "above 0")
        require(self.heal_rate > 0, "--heal-rate", f"{self.heal_rate:g}", "above 0")
        require(self.cache_gib > 0, "--cache-gib", f"{self.cache_gib:g}", "above 0")
        for flag in COUNTS:
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')}", value, "at least 1")
        for flag in ("memory", "device_memory"):
            size = getattr(self, flag)
            if size is not None:
                parse_size(f"--{flag.replace('_', '-')}", size)
        self.check_dry_run()

    def check_dry_run(self) -> None:
        """ConfigError for a setting that a dry run cannot answer, or that only it has."""
        for name in self.machine:
            require_choice("--machine", name, MachineName)
        given = " ".join(self.machine)
        require(self.dry_run or not self.machine, "--machine", given, "given with --dry-run")
        require(len(set(self.machine)) == len(self.machine), "--machine", given, "each name once")
        timed = self.dry_run and self.budget == "latency"
        rule = "params or memory with --dry-run, which times no widths"
        require(not timed, "--budget", self.budget, rule)

    @property
    def work_folder(self) -> str:
        """Where the supernet and the search's record are kept."""
        return self.work or f"{self.output.rstrip('/')}.work"


COUNTS = ("multiple", "top_k", "calibration_tokens", "search_tokens", "held_out_tokens")
