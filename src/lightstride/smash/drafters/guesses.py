"""Guesses at the next tokens of a row, whoever makes them, and the tree that the base checks.

    first = "The"                     guess   token   parent   joint probability
                                      0       cat     ROOT     0.5
    The - cat - sat                   1       dog     ROOT     0.3
        \\     \\ is                    2       sat     0        0.4
         dog - ran                    3       is      0        0.05
                                      4       ran     1        0.2

With room for four tokens, the first one included, the tree keeps the three likeliest guesses: cat,
sat, dog.  A guess is never likelier than its parent, so what is kept hangs together.

Shapes: T taps, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from lightstride.generate.rows import Row

ROOT = -1


@dataclass(frozen=True)
class Guess:
    """A token that may come, and the one that it follows."""

    probability: float
    """Of it and all tokens before it in its branch together."""
    token: int
    parent: int
    """The guess before it in its list, or ROOT."""
    depth: int
    """Tokens from the first one, which is certain, to this one: at least 1."""
    drafter: int = 0
    """Who made it, by number."""
    claimed: float = 0.0
    """The probability that its drafter gave it, where experience has corrected that."""


@dataclass(frozen=True)
class Guesses:
    """Proposals of one drafter for one row."""

    guesses: Sequence[Guess] = ()
    """A parent comes before its children."""

    @property
    def tokens(self) -> list[int]:
        """The tokens, in order."""
        return [guess.token for guess in self.guesses]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds of the proposals for one row."""

    num_guesses: int
    """Guesses that may be checked; more than these are not worth making."""
    depth: int
    """Most tokens of a branch: what is left of the answer."""
    least_probability: float
    """Least joint probability of a guess; 1 asks for none."""
    rivals: Sequence[float] = ()
    """Joint probabilities of the guesses that other drafters made already."""


@dataclass(frozen=True)
class Kept:
    """Tokens of a row that are now in its cache: a part of its prompt, or what a step confirmed."""

    tokens: Sequence[int]
    taps_KTD: Tensor
    """The drafter's features of each, the base's own."""


class Drafter(Protocol):
    """Proposes further tokens of rows whose next token, `row.pending[-1]`, is certain."""

    taps: Sequence[int]
    """The base's hidden states that it drafts from."""
    reads_context: bool
    """Whether `accept` must be told of every token, the prompts' too."""

    def cost(self, found: Sequence[Guesses]) -> float:
        """What these proposals cost, in forwards of the base over one column of all rows."""
        ...

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor | None, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """Guesses of each row; `taps` are those of the row's last entry, None without any."""
        ...

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Move the drafter's own state on, where it has one."""
        ...


@dataclass
class Tree:
    """Tokens after one that is certain, the first; a token's parent always comes before it."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [ROOT])
    depths: list[int] = field(default_factory=lambda: [0])
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    """Where a token is, by its parent and itself."""
    origins: list[Guess | None] = field(default_factory=lambda: [None])
    """The guess that each token was added for; the first is certain."""

    def add(self, parent: int, token: int) -> int:
        """Where the token is as a child of `parent`; it is added if it is not there."""
        place = self.children.setdefault((parent, token), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
        return place

    def attach(self, guesses: Sequence[Guess], size: int) -> None:
        """Add the likeliest guesses, up to so many tokens of the tree in all."""
        places: dict[int, int] = {ROOT: 0}
        for index in sorted(range(len(guesses)), key=lambda i: -guesses[i].probability):
            if len(self.tokens) == size:
                return
            guess = guesses[index]
            places[index] = self.add(places[guess.parent], guess.token)
            if places[index] == len(self.origins):
                self.origins.append(guess)

    @property
    def chances(self) -> list[float]:
        """Probabilities of all tokens but the first, descending."""
        return [origin.probability for origin in self.origins if origin is not None]

    def cut(self, size: int) -> None:
        """Keep the likeliest tokens alone, so many with the first."""
        for values in (self.tokens, self.parents, self.depths, self.origins):
            del values[size:]
        self.children = {key: place for key, place in self.children.items() if place < size}

    @property
    def is_chain(self) -> bool:
        """Whether no token has two others behind it."""
        return self.parents == list(range(-1, len(self.tokens) - 1))

    def mask(self) -> Tensor:
        """Which tokens each sees: its own branch up to itself, shape (Q, Q)."""
        sees_QQ = torch.eye(len(self.tokens), dtype=torch.bool)
        for place, parent in enumerate(self.parents[1:], 1):
            sees_QQ[place] |= sees_QQ[parent]
        return sees_QQ


def likeliest_branch(guesses: Sequence[Guess]) -> list[Guess]:
    """The branch of most expected tokens alone, in order."""
    expected: list[float] = []
    for guess in guesses:
        before = 0.0 if guess.parent == ROOT else expected[guess.parent]
        expected.append(before + guess.probability)
    if not expected:
        return []
    place = max(range(len(guesses)), key=lambda index: expected[index])
    branch: list[Guess] = []
    while place != ROOT:
        branch.append(guesses[place])
        place = guesses[place].parent
    branch.reverse()
    return [replace(guess, parent=index - 1) for index, guess in enumerate(branch)]


def pooled(lists: Sequence[Sequence[Guess]]) -> list[Guess]:
    """Guesses of several drafters as one list, each with its parent there."""
    pool: list[Guess] = []
    for guesses in lists:
        start = len(pool)
        pool += [
            guess
            if start == 0 or guess.parent == ROOT
            else replace(guess, parent=guess.parent + start)
            for guess in guesses
        ]
    return pool
