"""Drafts that cost nothing: what followed the last time the latest tokens occurred.

Where the base checks the draft, any guess is allowed.  Answers repeat their prompt and themselves:
names, numbers, code, whole phrases.  If the latest n tokens of prompt and answer occurred before,
what followed them then is proposed again, the longest n first; a proposal that reaches the end of
the text goes on with itself, so that loops are continued.

Known as prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding); we differ:
the places are remembered as tokens come, so that a proposal costs no search.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightstride.generate.rows import Row

LONGEST = 8
SHORTEST = 2
"""Tokens of a run that is reason enough to propose what followed it, and nothing else."""
MOST_BRANCHES = 3
CHANCES = (0.0, 0.25, 0.55, 0.6, 0.7, 0.75, 0.78, 0.78, 0.9)
"""How often the token is right that followed the latest n tokens before, by n, if no longer run
was there before (34,000 tokens of SmolLM2-135M's own greedy answers to chat, 38,000 to maths: 0.18
and 0.33 for n = 1, 0.49 and 0.59 for 2, 0.93 and 0.85 for 8).  A token that is right makes the run
longer by itself."""


@dataclass(frozen=True)
class Branch:
    """A place at which something may go on as it did before."""

    place: int
    run: int
    """Tokens before it that are the latest ones again."""


@dataclass(frozen=True)
class Expected:
    """What may come next because it did before."""

    tokens: list[int]
    run: int

    def opinion(self, said: Sequence[int], token: int) -> float:
        """How likely this token is next, after those that were said; minus how likely another is,
        and 0 where nothing is expected."""
        place = len(said)
        if place >= len(self.tokens) or [*said] != self.tokens[:place]:
            return 0.0
        chance = CHANCES[min(self.run + place, len(CHANCES) - 1)]
        return chance if self.tokens[place] == token else -chance


class Lookup:
    """All tokens of one row so far, and where each of their runs ended."""

    def __init__(
        self, tokens: Iterable[int] = (), *, longest: int = LONGEST, shortest: int = SHORTEST
    ) -> None:
        self.longest = longest
        self.shortest = shortest
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], list[int]] = {}
        """Behind each run: the latest places with different tokens, the last first."""
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of further tokens."""
        for token in tokens:
            here = len(self.tokens)
            for size in range(1, min(self.longest, here) + 1):
                run = tuple(self.tokens[-size:])
                others = [p for p in self.ends.get(run, ()) if self.tokens[p] != token]
                self.ends[run] = [here, *others[: MOST_BRANCHES - 1]]
            self.tokens.append(token)

    def branches(self, shortest: int = 1) -> list[Branch]:
        """Places with different tokens, those behind the longest run first, then the latest."""
        found: dict[int, Branch] = {}
        for size in range(min(self.longest, len(self.tokens)), shortest - 1, -1):
            for place in self.ends.get(tuple(self.tokens[-size:]), ()):
                found.setdefault(self.tokens[place], Branch(place, size))
        return list(found.values())[:MOST_BRANCHES]

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if the latest ones are new."""
        return self.expect(most, self.shortest).tokens

    def expect(self, most: int, shortest: int = 1) -> Expected:
        """The likeliest of what may come next."""
        for branch in self.branches(shortest)[:1]:
            return Expected(continuation(self.tokens, branch.place, most), branch.run)
        return Expected([], 0)


class Lookups:
    """Proposals for the rows of a batch."""

    def __init__(self, longest: int, ends: frozenset[int]) -> None:
        self.longest = longest
        """Most tokens of a step, its first included, that is looked up; below 2 nothing is."""
        self.ends = ends
        self.lookups: dict[int, Lookup] = {}

    def of(self, row: Row) -> Lookup:
        """What a row has said so far."""
        lookup = self.lookups.setdefault(row.index, Lookup(row.prompt))
        lookup.extend(row.tokens[len(lookup.tokens) - len(row.prompt) :])
        return lookup

    def propose(self, row: Row, most: int) -> list[int]:
        """Up to `most` tokens that may come next in a row, none behind an end token."""
        most = min(most, self.longest - 1)
        return self.until_end(self.of(row).propose(most)) if most >= 1 else []

    def proposals(self, row: Row, most: int) -> list[tuple[list[int], list[float]]]:
        """Different continuations, the likeliest first; with how likely each of their tokens is,
        given those before it and that no earlier continuation begins rightly."""
        most = min(most, self.longest - 1)
        if most < 1:
            return []
        lookup = self.of(row)
        found = []
        for branch in lookup.branches():
            tokens = self.until_end(continuation(lookup.tokens, branch.place, most))
            runs = (min(branch.run + n, len(CHANCES) - 1) for n in range(len(tokens)))
            found.append((tokens, [CHANCES[run] for run in runs]))
        return found

    def until_end(self, tokens: list[int]) -> list[int]:
        """These tokens, up to an end token."""
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]


def continuation(tokens: Sequence[int], place: int, count: int) -> list[int]:
    """The tokens from a place on; past the end they are the ones just given, again."""
    period = len(tokens) - place
    return [tokens[place + index % period] for index in range(count)]
