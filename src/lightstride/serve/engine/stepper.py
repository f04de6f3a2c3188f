"""The thread that computes: it steps the engines of all models in turn.

There is one, whatever number of models there is: OpenMP keeps a pool of threads for every thread
that has computed, and where pools have more threads than there are cores all of them are slower.
"""

import threading
from typing import Protocol

LAST_STEP_SECONDS = 10
"""Longest wait for a step that is on its way."""


class Stepped(Protocol):
    """An engine, as its thread sees it."""

    @property
    def has_work(self) -> bool:
        """Whether it wants a turn."""
        ...

    def turn(self) -> bool:
        """One step of all answers; False where there is to be no other. It never raises."""
        ...


class Stepper:
    """Engines and their thread, which runs while there are any."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        """Held where engines, or what waits in their queues, change."""
        self.engines: list[Stepped] = []
        self.has_news = False
        self.thread: threading.Thread | None = None
        self.runs = False
        """Whether the thread is to go on; it may take a moment to end after that."""

    def add(self, engine: Stepped) -> None:
        """Step an engine from now on."""
        with self.lock:
            self.engines.append(engine)
            if not self.runs:
                self.runs = True
                self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
                self.thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, where all engines were stopped.

        A process that ends while its pool of threads is taken down is aborted.
        """
        if self.thread is not None:
            self.thread.join(LAST_STEP_SECONDS)

    def wake(self) -> None:
        """Let the thread see what changed in some engine's queue; the lock is held."""
        self.has_news = True
        self.lock.notify()

    def interrupt(self) -> bool:
        """Whether something changed since all engines were looked at."""
        return self.has_news

    def run(self) -> None:
        """Sleep while there is nothing to do, else step; end with the last engine."""
        while True:
            with self.lock:
                while not any(engine.has_work for engine in self.engines):
                    if not self.engines:
                        self.runs = False
                        return
                    self.lock.wait()
                ready = [engine for engine in self.engines if engine.has_work]
                self.has_news = False
            for engine in ready:
                if not engine.turn():
                    with self.lock:
                        self.engines.remove(engine)
