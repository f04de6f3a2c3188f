"""The sessions of one model, stepped for everybody, and the queue in front of them.

Requests are taken in the order in which they come.  One that has to wait for its row holds back
those behind it, so that a long prompt is not overtaken for ever.  Between two steps new requests
are taken in, and those dropped that nobody wants any more; what a step brought is told to the
event loop in one call.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence

from lightstride.config.decoding import Settings
from lightstride.errors import LightstrideError
from lightstride.generate.session import Hooks, RowStep
from lightstride.serve.engine.choices import Choices
from lightstride.serve.engine.sessions import OpenSession, Sessions
from lightstride.serve.engine.stepper import Stepper
from lightstride.serve.engine.ticket import EngineTicket
from lightstride.serve.faults import ApiError, bad, internal, shutting_down
from lightstride.serve.seam import Ask, Load, News, Scored

LOG = logging.getLogger("lightstride.serve")
Prepare = Callable[[Ask], tuple[float, Settings, Choices | None]]
"""Budget of a row's memory plan, its settings, and its say in what it chooses; raises ApiError."""


class Engine:
    """The sessions of one model and their queue; a stepper's thread takes its turns."""

    def __init__(
        self,
        open_session: OpenSession,
        prepare: Prepare,
        *,
        rows: int,
        queue: int,
        stepper: Stepper,
    ) -> None:
        self.open_session = open_session
        self.prepare = prepare
        self.max_rows = rows
        self.max_queue = queue
        self.numbers = itertools.count()
        self.stepper = stepper
        self.lock = stepper.lock
        self.waiting: deque[EngineTicket] = deque()
        self.cancelled: set[str] = set()
        self.running: dict[str, EngineTicket] = {}
        self.choices: dict[str, Choices] = {}
        self.stopping = False
        self.load = Load(0, 0, 0)
        self.opened: Sessions | None = None
        self.is_new = True
        stepper.add(self)

    @property
    def has_work(self) -> bool:
        """Whether it wants a turn: the first one opens the sessions."""
        busy = self.waiting or self.running or self.cancelled or self.stopping
        return bool(busy) or self.is_new

    @property
    def sessions(self) -> Sessions:
        """The sessions, for the stepper's thread alone."""
        if self.opened is None:
            self.opened = Sessions(self.open_session)
        return self.opened

    def submit(self, asks: Sequence[Ask]) -> list[EngineTicket]:
        """Queue answers, all or none; ApiError 429 where the queue is full. Called in the loop."""
        with self.lock:
            if self.stopping:
                raise shutting_down()
            free = self.max_rows - len(self.running) if not self.waiting else 0
            if len(self.waiting) + len(asks) > self.max_queue + free:
                raise ApiError(
                    429,
                    f"{len(self.waiting)} answers are waiting already; come back later",
                    code="queue_full",
                )
            tickets = [EngineTicket(str(next(self.numbers)), ask, self.cancel) for ask in asks]
            self.waiting.extend(tickets)
            self.stepper.wake()
        return tickets

    def cancel(self, key: str) -> None:
        """Drop an answer before the next step. Called in the loop."""
        with self.lock:
            self.cancelled.add(key)
            self.stepper.wake()

    def stop(self) -> None:
        """End all answers with a fault; there are no turns after the next."""
        with self.lock:
            self.stopping = True
            self.stepper.wake()

    def turn(self) -> bool:
        """Drop, take in, step, tell; whether there may be another turn. In the stepper's thread."""
        if self.stopping:
            self.give_up(shutting_down())
            return False
        self.is_new = False
        try:
            self.step()
        except Exception:
            LOG.exception("a step failed; all its answers are given up")
            self.give_up(internal())
            self.opened = None
        return True

    def step(self) -> None:
        """One step of every session that has rows, and what goes with it."""
        self.drop_cancelled()
        told: list[tuple[EngineTicket, News | ApiError]] = self.take_in()
        if self.running:
            told += [self.read(step) for step in self.sessions.step(self.stepper.interrupt)]
        free = self.sessions.free_entries
        with self.lock:
            self.load = Load(len(self.running), len(self.waiting), 0 if free is None else free)
        tell(told)

    def drop_cancelled(self) -> None:
        """Forget answers that nobody wants any more."""
        with self.lock:
            gone, self.cancelled = self.cancelled, set()
            self.waiting = deque(t for t in self.waiting if t.key not in gone)
        for key in gone & self.running.keys():
            self.sessions.cancel(key)
            self.forget(key)

    def take_in(self) -> list[tuple[EngineTicket, News | ApiError]]:
        """Give the first of the queue their rows; what comes back are those that never fit."""
        refused: list[tuple[EngineTicket, News | ApiError]] = []
        while self.waiting and len(self.running) < self.max_rows:
            ticket = self.waiting[0]
            try:
                budget, settings, choices = self.prepare(ticket.ask)
                prompt = ticket.ask.prompt
                if self.running and not self.sessions.fits(budget, len(prompt), settings):
                    break
                hooks = None if choices is None else Hooks(processor=choices)
                self.sessions.add(budget, prompt, settings, ticket.key, hooks=hooks)
            except LightstrideError as error:
                refused.append((ticket, bad(str(error))))
            except ApiError as fault:
                refused.append((ticket, fault))
            else:
                self.running[ticket.key] = ticket
                if choices is not None:
                    self.choices[ticket.key] = choices
            with self.lock:
                self.waiting.popleft()
        return refused

    def read(self, step: RowStep) -> tuple[EngineTicket, News | ApiError]:
        """What one step brought to one answer, as its ticket tells it."""
        ticket = self.running[step.key]
        choices = self.choices.get(step.key)
        if step.finish is not None:
            self.forget(step.key)
        if choices is not None and choices.problem is not None:
            return ticket, bad(choices.problem, "response_format")
        scored = None
        if step.logprobs is not None:
            scored = tuple(Scored(t.token, t.logprob, t.top) for t in step.logprobs)
        return ticket, News(
            step.tokens, step.text, step.kv_entries, step.finish, scored, step.cached
        )

    def forget(self, key: str) -> None:
        """A row has left."""
        del self.running[key]
        self.choices.pop(key, None)

    def give_up(self, fault: ApiError) -> None:
        """Tell the fault to everybody who waits."""
        with self.lock:
            everybody = [*self.running.values()]
            if self.stopping:
                everybody += self.waiting
                self.waiting.clear()
            self.running.clear()
            self.choices.clear()
            self.load = Load(0, len(self.waiting), self.load.free_entries)
        tell([(ticket, fault) for ticket in everybody])


def tell(told: Sequence[tuple[EngineTicket, News | ApiError]]) -> None:
    """Tell the event loop of all tickets at once; where it has ended nobody listens any more."""
    if not told:
        return
    try:
        told[0][0].loop.call_soon_threadsafe(put_down, told)
    except RuntimeError:
        LOG.info("the event loop has ended: %d answers are lost", len(told))


def put_down(told: Sequence[tuple[EngineTicket, News | ApiError]]) -> None:
    """Give every ticket its news; runs in the loop."""
    for ticket, news in told:
        ticket.tell(news)
