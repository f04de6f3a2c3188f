"""Drafts that cost nothing: what followed the last time the latest tokens occurred.

Where the base checks the draft, any guess is allowed.  Answers repeat their prompt and themselves:
names, numbers, code, whole phrases.  If the latest n tokens of prompt and answer occurred before,
what followed them then is proposed again, the longest n first; a proposal that reaches the end of
the text goes on with itself, so that loops are continued.

Known as prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding); we differ:
the places are remembered as tokens come, so that a proposal costs no search.
"""

from collections.abc import Iterable, Sequence

from lightstride.generate.rows import Row

LONGEST = 4
SHORTEST = 2


class Lookup:
    """All tokens of one row so far, and where each of their runs ended last."""

    def __init__(
        self, tokens: Iterable[int] = (), *, longest: int = LONGEST, shortest: int = SHORTEST
    ) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of further tokens."""
        for token in tokens:
            for size in self.sizes:
                if size <= len(self.tokens):
                    self.ends[tuple(self.tokens[-size:])] = len(self.tokens)
            self.tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if the latest ones are new."""
        for size in self.sizes:
            place = self.ends.get(tuple(self.tokens[-size:]))
            if place is not None and size <= len(self.tokens):
                return continuation(self.tokens, place, most)
        return []


class Lookups:
    """Proposals for the rows of a batch."""

    def __init__(self, longest: int, ends: frozenset[int]) -> None:
        self.longest = longest
        """Most tokens of a step, its first included, that is looked up; below 2 nothing is."""
        self.ends = ends
        self.lookups: dict[int, Lookup] = {}

    def propose(self, row: Row, most: int) -> list[int]:
        """Up to `most` tokens that may come next in a row, none behind an end token."""
        most = min(most, self.longest - 1)
        if most < 1:
            return []
        lookup = self.lookups.setdefault(row.index, Lookup(row.prompt))
        lookup.extend(row.tokens[len(lookup.tokens) - len(row.prompt) :])
        proposed = lookup.propose(most)
        end = next((i for i, token in enumerate(proposed) if token in self.ends), most)
        return proposed[: end + 1]


def continuation(tokens: Sequence[int], place: int, count: int) -> list[int]:
    """The tokens from a place on; past the end they are the ones just given, again."""
    period = len(tokens) - place
    return [tokens[place + index % period] for index in range(count)]
