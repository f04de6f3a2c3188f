"""One session a memory plan, and one bound on the entries of all of them.

Requests name the plan by its budget, the share of KV entries that it keeps.  The session of the
full cache is opened at once, any other when its plan is first asked for.  Each is promised as much
as if it kept everything, so that a prompt can be read; what one was promised, the others leave.
"""

from collections.abc import Callable, Sequence

from lightstride.config.decoding import Settings
from lightstride.generate.session import Hooks, Interrupt, RowStep, Session

OpenSession = Callable[[float], Session]
"""A session without rows, given the budget of its plan; 1 keeps everything."""


class Sessions:
    """The sessions of one model, stepped in turn."""

    def __init__(self, open_session: OpenSession) -> None:
        self.open_session = open_session
        self.opened: dict[float, Session] = {1.0: open_session(1.0)}
        self.owners: dict[str, Session] = {}
        """The session of each row that has not ended."""

    def of(self, budget: float) -> Session:
        """The session of a budget, told what the others have been promised."""
        if budget not in self.opened:
            self.opened[budget] = self.open_session(budget)
        session = self.opened[budget]
        if len(self.opened) > 1:
            others = [each for each in self.opened.values() if each is not session]
            session.leave(sum(each.promised_entries for each in others))
        return session

    def fits(self, budget: float, num_prompt: int, settings: Settings) -> bool:
        """Whether a row would join at the next step."""
        return self.of(budget).fits(num_prompt, settings)

    def add(
        self,
        budget: float,
        prompt: Sequence[int],
        settings: Settings,
        key: str,
        *,
        hooks: Hooks | None = None,
    ) -> None:
        """Take a row in; raises as the session does."""
        session = self.of(budget)
        session.add(prompt, settings, key, hooks=hooks)
        self.owners[key] = session

    def cancel(self, key: str) -> None:
        """Drop a row before the next step."""
        self.owners.pop(key).cancel(key)

    def step(self, interrupt: Interrupt | None = None) -> list[RowStep]:
        """One step of every session that has rows; one that is alone can be interrupted."""
        told: list[RowStep] = []
        busy = [budget for budget, session in self.opened.items() if session.keys]
        for budget in busy:
            told += self.of(budget).step(interrupt if len(busy) == 1 else None)
        for row in told:
            if row.finish is not None:
                del self.owners[row.key]
        return told

    @property
    def free_entries(self) -> int | None:
        """Entries that no row of any session has been promised; None without a limit."""
        return self.of(1.0).free_entries
