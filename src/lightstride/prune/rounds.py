"""From a space to a plan, coarse to fine, and from a plan to its weights.

Round r builds a supernet around the last round's plan, with steps of 12.5%, 6.25%, 3.125%, ...
of each site, and searches it; every round cuts the dense weights afresh.  The first round is
shared by all sparsities of a run.  The closing round cuts and refits the chosen widths exactly,
each site on the stream that the cut sites before it give, with all calibration tokens.

Paper: https://arxiv.org/abs/2503.09657, section 3.5.  We differ: several sparsities share the
first supernet and the dense model's answers on the search text, early rounds measure on
fewer tokens, and the closing round is ours.

What is finished is a file in the work folder, so that a killed run goes on where it was.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import msgspec
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.config.prune import Accumulation, Split
from lightstride.distributed import barrier, broadcast_object, rank
from lightstride.errors import WorkError
from lightstride.files.read import Count, Finite
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.models.device import give_back_freed
from lightstride.models.families.adapter import Adapter
from lightstride.models.opening.source import WeightSource
from lightstride.models.shapes import Shape, Site
from lightstride.prune.cut.supernet import ChosenLevels, Supernet, build_supernet, supernet_bytes
from lightstride.prune.devices import accelerator_memory, dispatched, room_for
from lightstride.prune.fitness import DenseAnswer, Fitness, FitnessSettings
from lightstride.prune.space.even import even_plans
from lightstride.prune.space.narrow import limit_for, narrow, uniform_plan
from lightstride.prune.space.plan import Plan, Space, kind_cost
from lightstride.prune.stopwatch import Stopwatch
from lightstride.prune.sweep import SweptFitness
from lightstride.search.evaluation_log import Evaluate, EvaluationLog
from lightstride.search.evolution import EvolutionSettings, evolve
from lightstride.search.guided import GuidedSearch, GuidedSettings
from lightstride.search.moves import Moves
from lightstride.search.race import race
from lightstride.search.result import OnGeneration, ProgressFor, SearchResult, no_progress

FIRST_STEP = Fraction(1, 8)


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """Settings of the way from a space to a plan."""

    search: GuidedSettings | EvolutionSettings | None = field(default_factory=GuidedSettings)
    """None keeps the uniform plan."""
    num_rounds: int = 4
    num_levels: int = 9
    split: Split = "free"
    """Attention and FFN trade parameters (free), or keep the uniform plan's shares (fixed)."""
    accumulation: Accumulation = "median"
    weigh_tokens: bool = True
    """Tokens count by the inverse square of their residual stream; else all count alike."""
    correction: float = 0.35
    """Part of the accumulated drift that each site of the closing round undoes."""
    damping: float = 0.01
    batch_size: int = 8
    """Windows that run through a block at once while statistics are taken."""
    early_share: float = 0.25
    """Share of the calibration windows that supernets are built from; the closing round has all."""
    fitness: FitnessSettings = field(default_factory=FitnessSettings)
    seed: int = 0

    @property
    def closing_streams(self) -> int:
        """Streams of the closing round: a correction needs the dense model's own."""
        return 2 if self.correction and self.accumulation != "none" else 1

    def early_windows(self, num_windows: int) -> int:
        """Of so many calibration windows, those that supernets are built from."""
        return max(1, round(num_windows * self.early_share))

    def largest_sample(self, num_tokens: int, space: Space) -> int:
        """Tokens of the largest sample that a search evaluates, of so many there are."""
        if self.search is None or space.uniform:
            return num_tokens
        return min(num_tokens, max(self.search.tokens))


@dataclass(frozen=True)
class RoundResult:
    """The best plan of one search of one round, and its cost."""

    share: float
    round: int
    plan: Plan
    fitness: float
    tokens: int
    seconds: float
    slopes: Mapping[Site, float] = field(default_factory=dict)
    """Every site's slope, as the search learned it; the next round starts from these."""

    def summary(self) -> dict[str, object]:
        """Its figures, for a `result.json`."""
        return {
            "round": self.round,
            "plan": self.plan.key,
            "fitness": self.fitness,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def to_json(self) -> dict[str, object]:
        """A JSON document that `from_json` reads back."""
        slopes = {str(site): slope for site, slope in self.slopes.items()}
        return {**vars(self), "plan": self.plan.to_json(), "slopes": slopes}

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> "RoundResult":
        """The result that `to_json` wrote."""
        slopes = document["slopes"]
        assert isinstance(slopes, dict)
        parsed = {Site.parse(site): slope for site, slope in slopes.items()}
        values = {**document, "plan": Plan.from_json(document["plan"]), "slopes": parsed}
        return cls(**values)  # type: ignore[arg-type]


class Record(msgspec.Struct):
    """A round's result as its file has it."""

    share: Finite
    round: Count
    plan: dict[str, object]
    fitness: Annotated[float, msgspec.Meta(ge=-1e300)]
    tokens: Count
    seconds: Finite
    slopes: dict[str, Finite]


@dataclass(frozen=True)
class SearchTask:
    """One search of one round."""

    share: float
    round: int
    centre: Plan
    space: Space
    known: Mapping[Site, float]
    """Every site's slope, as the last round learned it."""

    @property
    def name(self) -> str:
        """Its name in the work folder and in the record of evaluations."""
        return f"round-{self.round}-{name_of(self.share)}"


@dataclass
class RoundRunner:
    """A dense model with its texts, a space of plans, and a work folder."""

    source: WeightSource
    space: Space
    dense_cost: int
    """Cost of the dense model in the space's unit."""
    calibration_NL: Tensor
    search_NL: Tensor
    work: Path
    settings: RoundSettings
    spill: bool = False
    """Keep activations in files in the work folder."""
    progress: bool = False
    progress_for: ProgressFor[Plan] = no_progress
    """Gives the function to call after each generation of a search."""
    clock: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.answers: dict[int, DenseAnswer] = {}

    @property
    def spill_folder(self) -> Path | None:
        """Where activations are that memory is too small for: a folder for every process."""
        return self.work / f"activations-{rank()}" if self.spill else None

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.source.model

    @property
    def adapter(self) -> Adapter:
        """The adapter of its family."""
        return self.source.adapter

    def centre(self, share: float) -> Plan:
        """The uniform plan of a sparsity."""
        return uniform_plan(self.space, share, self.limit(share))

    def limit(self, share: float) -> int:
        """Highest cost of a plan of this sparsity; raises BudgetError if there is none."""
        return limit_for(share, self.dense_cost, self.space)

    def plans(self, shares: Sequence[float]) -> dict[float, list[RoundResult]]:
        """The results of all rounds, by sparsity; the last one has the plan to take."""
        found: dict[float, list[RoundResult]] = {share: [] for share in shares}
        if self.settings.search is None:
            return found
        for number in range(1, self.settings.num_rounds + 1):
            tasks = [self.next_task(share, number, found[share]) for share in shares]
            for group in [tasks] if number == 1 else [[task] for task in tasks]:
                for result in self.round(group):
                    found[result.share].append(result)
        return found

    def next_task(self, share: float, number: int, before: Sequence[RoundResult]) -> SearchTask:
        """The search of a round that follows these results."""
        centre = before[-1].plan if before else self.centre(share)
        known = before[-1].slopes if before else {}
        return SearchTask(share, number, centre, self.narrowed(number, centre), known)

    def round(self, tasks: Sequence[SearchTask]) -> list[RoundResult]:
        """Search one supernet for every task of a round."""
        first = tasks[0]
        folder = self.work / (f"round-{first.round}" if first.round == 1 else first.name)
        finished = [self.load_result(task) for task in tasks]
        if None in finished:
            middle = tasks[len(tasks) // 2].centre
            count = self.settings.early_windows(len(self.calibration_NL))
            levels = self.shapes_of(task.space for task in tasks)
            with self.clock("supernets"):
                supernet = self.supernet_for(folder, self.calibration_NL[:count], levels, middle)
            finished = [
                self.search(task, supernet) if result is None else result
                for task, result in zip(tasks, finished, strict=True)
            ]
        give_back_freed()  # the cut weights of the search
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return [result for result in finished if result is not None]

    def shapes_of(self, spaces: Iterable[Space]) -> dict[Site, list[Shape]]:
        """All shapes of these spaces."""
        found = list(spaces)
        return {
            site: [
                shape
                for shape in self.space.choices[site]
                if any(shape in space.choices[site] for space in found)
            ]
            for site in self.space.sites
        }

    def supernet_bytes(self, shares: Iterable[float]) -> int:
        """Disk that the largest supernet, the first, takes."""
        if self.settings.search is None:
            return 0
        spaces = [self.narrowed(1, self.centre(share)) for share in shares]
        return supernet_bytes(self.space.geometry, self.shapes_of(spaces))

    def narrowed(self, number: int, centre: Plan) -> Space:
        """The space of a round."""
        return narrow(self.space, centre, FIRST_STEP / 2 ** (number - 1), self.settings.num_levels)

    def supernet_for(
        self,
        folder: Path,
        tokens_NL: Tensor,
        shapes: Mapping[Site, Sequence[Shape]],
        centre: Plan,
        correction: float = 0.0,
    ) -> Supernet:
        """The supernet of these shapes, built or opened."""
        return build_supernet(
            self.source,
            tokens_NL,
            shapes,
            centre.shapes,
            folder,
            accumulation=self.settings.accumulation,
            weigh_tokens=self.settings.weigh_tokens,
            correction=correction,
            damping=self.settings.damping,
            channel_step=self.space.channel_step,
            batch_size=self.settings.batch_size,
            spill=self.spill_folder,
            progress=self.progress,
        )

    def search(self, task: SearchTask, supernet: Supernet) -> RoundResult:
        """Search a supernet; the result is also written to the work folder."""
        with self.clock("searches"), ExitStack() as stack:
            title = f"{task.share:.4g}, round {task.round}"
            on_generation = stack.enter_context(self.progress_for(title))
            fitness = self.fitness(supernet, stack)
            record = self.work / "search.jsonl"
            log = EvaluationLog(fitness, record, task.name)
            found = self.run_search(task, supernet, log, on_generation)
        result = RoundResult(
            task.share,
            task.round,
            found.plan,
            found.fitness,
            found.tokens,
            log.seconds,
            dict(zip(task.space.sites, found.slopes, strict=False)),
        )
        self.save_result(task, result)
        return result

    def fitness(self, supernet: Supernet, stack: ExitStack) -> Evaluate[Plan]:
        """How plans are compared: candidate by candidate where the model lies on devices, else
        all of them block by block.

        The model lies on devices until the stack is closed.
        """
        settings, answers = self.settings.fitness, self.answers
        memory = None
        if not self.source.streamed:
            memory = accelerator_memory(self.model, self.source.device.type)
        if self.source.streamed or (memory and not room_for(self.model, memory)):
            return SweptFitness(
                self.source, self.search_NL, supernet.load, settings, answers, self.spill_folder
            )
        stack.enter_context(dispatched(self.model, self.adapter, memory))
        return Fitness(self.model, self.adapter, self.search_NL, supernet.load, settings, answers)

    def run_search(
        self,
        task: SearchTask,
        supernet: Supernet,
        log: EvaluationLog[Plan],
        on_generation: OnGeneration[Plan],
    ) -> SearchResult[Plan]:
        """The best plan of a supernet, by the search that was asked for."""
        search, space = self.settings.search, task.space
        assert search is not None
        limit = self.limit(task.share)
        if space.uniform:
            return race(even_plans(space, limit), log, self.search_NL.numel())
        shares: dict[str, int] = {}
        if self.settings.split == "fixed":
            shares["attention"] = kind_cost(self.space, self.centre(task.share), "attention")
        moves = Moves(space, limit, shares)
        seed = self.settings.seed * 1000 + task.round
        num_windows, window = self.search_NL.shape
        if isinstance(search, EvolutionSettings):
            return evolve(moves, task.centre, search, log, seed, num_windows, on_generation)
        losses = [
            [supernet.loss(site, shape) for shape in space.choices[site]] for site in space.sites
        ]
        known = [task.known[site] for site in space.sites] if task.known else []
        first = first_window(search, task.round, num_windows, window)
        guided = GuidedSearch(moves, losses, search, log, window, known, first)
        return guided.run(task.centre, seed, on_generation)

    def closing_round(self, share: float, plan: Plan) -> ChosenLevels:
        """The closing round: the plan's widths, cut and refitted exactly."""
        shapes = {site: (shape,) for site, shape in plan.shapes.items()}
        folder = self.work / f"closing-{name_of(share)}"
        correction = self.settings.correction
        with self.clock("closing rounds"):
            supernet = self.supernet_for(folder, self.calibration_NL, shapes, plan, correction)
        return ChosenLevels(supernet, plan.shapes)

    def load_result(self, task: SearchTask) -> RoundResult | None:
        """The result of a finished search, on every rank; None if it is not finished."""
        path = self.work / f"{task.name}.json"
        there = broadcast_object(rank() == 0 and path.exists())
        if not there:
            return None
        try:
            record = read_sealed(path, Record, WorkError)
            result = RoundResult.from_json(msgspec.to_builtins(record))
        except (WorkError, AssertionError, ValueError) as error:
            raise WorkError(f"{path} is damaged: delete it ({error})") from error
        shapes, sites = result.plan.shapes, set(task.space.sites)
        fits = set(shapes) == sites and all(shapes[s] in task.space.choices[s] for s in sites)
        same = (result.share, result.round) == (task.share, task.round)
        if not (fits and same and set(result.slopes) in (set(), sites)):
            raise WorkError(f"{path} is damaged: delete it (it is of another search)")
        return result

    def save_result(self, task: SearchTask, result: RoundResult) -> None:
        """Write the result of a search to the work folder."""
        if rank() == 0:
            write_sealed(self.work / f"{task.name}.json", result.to_json())
        barrier()


def first_window(search: GuidedSettings, number: int, num_windows: int, window: int) -> int:
    """First window of a round: every round reads windows of its own while there are any."""
    used = sum(-(-count // window) for count in search.tokens)
    return (number - 1) % max(1, num_windows // used) * used


def name_of(share: float) -> str:
    """A sparsity as part of a file name: 0.125 is `12.5`."""
    return f"{100 * share:.6g}"
