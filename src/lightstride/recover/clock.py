"""What a training's minutes count: time, or processor time; without what is measured beside it."""

import time
from collections.abc import Callable
from typing import Literal

import torch

from lightstride.training.checkpoint import Progress

ClockName = Literal["wall", "processor"]


def now(kind: ClockName) -> float:
    """Seconds since some moment, by a clock or of a processor by thread."""
    if kind == "wall":
        return time.monotonic()
    return time.process_time() / torch.get_num_threads()


class Clock:
    """Seconds of learning, earlier runs included."""

    def __init__(self, kind: ClockName, at: Progress) -> None:
        self.kind = kind
        self.started = self.now()
        self.processor_started = time.process_time()
        self.before, self.processor_before = at.seconds, at.processor_seconds
        self.first_step = at.step
        self.saved_at = time.monotonic()
        self.stopped_for = 0.0

    def now(self) -> float:
        """Seconds since some moment."""
        return now(self.kind)

    @property
    def here(self) -> float:
        """Seconds of this run, measuring left out."""
        return self.now() - self.started - self.stopped_for

    @property
    def processor(self) -> float:
        """Processor seconds of all runs, all threads."""
        return self.processor_before + time.process_time() - self.processor_started

    @property
    def seconds(self) -> float:
        """Seconds of all runs."""
        return self.before + self.here

    def note(self, at: Progress, step: int, seconds_ahead: float = 0.0) -> None:
        """Write down when a step was reached, and what was done for later ones."""
        at.step, at.seconds, at.seconds_ahead = step, self.seconds, seconds_ahead
        at.processor_seconds = self.processor

    def without(self, call: Callable[[], None]) -> None:
        """Make a call whose time does not count."""
        start = self.now()
        call()
        self.stopped_for += self.now() - start

    def note_save(self) -> None:
        """Write down that a checkpoint was written."""
        self.saved_at = time.monotonic()

    def since_save(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved_at
