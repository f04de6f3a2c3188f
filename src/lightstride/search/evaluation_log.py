"""Every evaluation of a search, written down as it is made, so that nothing is asked twice.

A search is a function of its seed and of the answers to its evaluations.  The log appends
each answer to `search.jsonl`; a killed run is resumed by running it again from the start, with
the log answering all evaluations that were made before.  A line cut off by the kill is dropped.
With several processes every one remembers everything, and rank 0 writes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic

import msgspec

from lightstride.distributed import broadcast_object, rank
from lightstride.errors import WorkError
from lightstride.files.read import Count
from lightstride.files.sealed import append_sealed, read_sealed_lines
from lightstride.search.space import P


@dataclass(frozen=True, order=True)
class Sample:
    """The search tokens that an evaluation reads: so many, from the window of this index on."""

    tokens: int
    first_window: int = 0


Evaluate = Callable[[Sequence[P], Sample], list[float]]
"""Fitness of each plan on a sample, lower is better; a pure function of plan and sample."""

Note = Mapping[str, object]
"""Facts written beside an evaluation for the file's readers: generation, stage, role."""


class EvaluationLine(msgspec.Struct):
    """What is read back of a line; a fitness may be infinite, but is a number."""

    scope: str
    tokens: Count
    first: Count
    fitness: Annotated[float, msgspec.Meta(ge=-1e300)]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e300)]
    plan: str


@dataclass
class EvaluationLog(Generic[P]):
    """Calls `evaluate` for unknown pairs of plan and sample, and remembers all answers."""

    evaluate: Evaluate[P]
    path: Path | None = None
    scope: str = ""
    """Name of the search within the file: answers of other scopes are not reused."""
    tokens: int = 0
    """Tokens of all evaluations so far, those read back from the file included."""
    seconds: float = 0.0
    """Time spent in them."""
    known: dict[tuple[str, Sample], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        for record in broadcast_object(read_evaluations(self.path) if rank() == 0 else []):
            if record["scope"] == self.scope:
                self._remember(record)

    def __call__(self, plans: Sequence[P], sample: Sample, note: Note) -> list[float]:
        """Fitness of each plan; plans already asked about on this sample cost nothing."""
        wanted = {plan.key: plan for plan in plans if (plan.key, sample) not in self.known}
        if wanted:
            start = time.perf_counter()
            answers = self.evaluate(list(wanted.values()), sample)
            share = (time.perf_counter() - start) / len(wanted)
            for key, fitness in zip(wanted, answers, strict=True):
                self._write(key, sample, fitness, share, note)
        return [self.known[plan.key, sample] for plan in plans]

    def _write(self, key: str, sample: Sample, fitness: float, seconds: float, note: Note) -> None:
        record = {
            "scope": self.scope,
            **note,
            "tokens": sample.tokens,
            "first": sample.first_window,
            "fitness": fitness,
            "seconds": round(seconds, 6),
            "plan": key,
        }
        self._remember(record)
        if self.path is not None and rank() == 0:
            append_sealed(self.path, [record])

    def _remember(self, record: Mapping[str, object]) -> None:
        tokens, first, seconds = record["tokens"], record["first"], record["seconds"]
        fitness, key = record["fitness"], record["plan"]
        assert isinstance(tokens, int)
        assert isinstance(first, int)
        assert isinstance(key, str)
        assert isinstance(seconds, int | float)
        assert isinstance(fitness, int | float)
        self.known[key, Sample(tokens, first)] = float(fitness)
        self.tokens += tokens
        self.seconds += seconds


def read_evaluations(path: Path) -> list[dict[str, object]]:
    """All whole records of a file; a last line that was cut off is also removed from the file."""
    try:
        found = read_sealed_lines(path, dict[str, object], WorkError, mend=True)
        msgspec.convert(found, list[EvaluationLine])
    except (WorkError, msgspec.ValidationError) as error:
        raise WorkError(f"{path} is damaged: {error}") from error
    return found
