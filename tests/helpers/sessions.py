"""Sessions driven by a seeded schedule: requests join, leave and are cancelled at random steps."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightstride.generate import Hooks, RowStep, Session, Settings


@dataclass(frozen=True)
class Request:
    """What a session is asked."""

    prompt: tuple[int, ...]
    settings: Settings
    hooks: Hooks | None = None
    cancel_after: int | None = None
    """Steps after joining when nobody wants the answer any more."""


def alone(session: Session, request: Request) -> list[RowStep]:
    """The steps of a request that is the only one."""
    session.add(request.prompt, request.settings, "alone", hooks=request.hooks)
    steps: list[RowStep] = []
    while session.keys:
        steps += session.step()
    return steps


def among_others(
    session: Session, requests: Sequence[Request], seed: int
) -> Mapping[int, list[RowStep]]:
    """The steps of each request, all of them in one session, joining at random."""
    rng = random.Random(seed)
    joins = sorted((rng.randrange(12), index) for index in range(len(requests)))
    ends = {index: at + (requests[index].cancel_after or 10**6) for at, index in joins}
    found: dict[int, list[RowStep]] = {index: [] for index in range(len(requests))}
    number = 0
    while joins or session.keys:
        while joins and joins[0][0] <= number:
            _, index = joins.pop(0)
            each = requests[index]
            session.add(each.prompt, each.settings, str(index), hooks=each.hooks)
        for index in [index for index, at in ends.items() if at == number]:
            session.cancel(str(index))
        for row in session.step():
            assert number < ends[int(row.key)]
            assert row.tokens
            found[int(row.key)].append(row)
        number += 1
    return found


def tokens_of(steps: Sequence[RowStep]) -> tuple[int, ...]:
    """The answer in some steps."""
    return tuple(token for step in steps for token in step.tokens)
