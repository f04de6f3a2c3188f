"""The result of a search, and its reports while it runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic

from lightstride.search.space import P


@dataclass(frozen=True)
class SearchResult(Generic[P]):
    """The best plan of a search."""

    plan: P
    fitness: float
    """On the last stage's sample."""
    tokens: int
    """Tokens evaluated so far, over all candidates."""
    slopes: tuple[float, ...] = ()
    """Every site's slope of the fitness over its loss, as the guided search learned it."""


@dataclass(frozen=True)
class GenerationReport(Generic[P]):
    """The state of a search after a generation."""

    generation: int
    generations: int
    """The highest number of generations."""
    plan: P
    """The best so far."""
    fitness: float
    tokens: int
    """Evaluated so far."""


OnGeneration = Callable[[GenerationReport[P]], None]
"""Called after every generation."""
ProgressFor = Callable[[str], AbstractContextManager[OnGeneration[P]]]
"""Given the title of a search: the function to call after each of its generations."""


def no_report(report: GenerationReport[P]) -> None:
    """Ignore a report."""


def no_progress(title: str) -> AbstractContextManager[OnGeneration[P]]:
    """Progress that is shown nowhere."""
    return nullcontext(no_report)
