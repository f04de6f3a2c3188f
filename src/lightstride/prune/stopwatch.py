"""How long each stage of a run took, by the names that `forecast.py` has for them.

Time of the processor is told beside that of the clock: on a machine that is shared, only the
first can be held against a forecast.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Spent:
    """Time of one stage, in this process."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    """Of all threads."""


@dataclass
class Stopwatch:
    """Times of stages; one that comes several times is summed."""

    stages: dict[str, Spent] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Inside, time counts for a stage."""
        start, used = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = self.stages.setdefault(stage, Spent())
            spent.seconds += time.perf_counter() - start
            spent.processor_seconds += time.process_time() - used

    def as_dict(self) -> dict[str, dict[str, float]]:
        """For JSON."""
        return {stage: asdict(spent) for stage, spent in self.stages.items()}
