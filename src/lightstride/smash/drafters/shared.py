"""What followed the latest tokens in earlier answers of the process, whoever asked for them.

    tokens   a b c d | a b c e | ...       answers one behind the other, the oldest overwritten
    places   hash of the last n tokens -> the latest place behind them, one table for each n

Both are arrays whose sizes follow from the bytes that are allowed, so memory is bounded by
construction.  A hash that another run of tokens has taken is seen by comparing the tokens.  It is
n-gram lookup over one pool for all requests (as llama.cpp's ngram-mod); a suffix tree (suffix
decoding, arXiv 2411.04975) would find longer runs first, for several times the memory.

Only the base's own choice becomes part of an answer, so nothing of one answer reaches another but
time: a proposal that is right makes a step say more.  Whoever measures that can tell whether a
text was said before.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.smash.drafters.guesses import Budget, Guesses, Kept
from lightstride.smash.drafters.lookups import branch_guesses
from lightstride.smash.model.lookup import LONGEST_RUN, MAX_BRANCHES

RUNS = (16, 8, 4)
"""Lengths of the runs that places are kept for, the longest first."""
END = -1
"""Stands behind each answer; no token."""
TOKEN_BYTES = 4 * (1 + len(RUNS))
"""A token and its places."""
FACTOR = np.uint64(6364136223846793005)


class SharedAnswers:
    """Answers that have ended, as many of the latest as fit so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.size = num_bytes // TOKEN_BYTES
        self.tokens = np.full(self.size, END, np.int32)
        self.places = np.zeros((len(RUNS), self.size), np.int32)
        self.end = 0
        """Where the next answer begins."""
        self.is_full = False
        """Whether the oldest answers have been overwritten."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are held, used or not."""
        return self.tokens.nbytes + self.places.nbytes

    @property
    def num_tokens(self) -> int:
        """Tokens that are known, ends included."""
        return self.size if self.is_full else self.end

    def add(self, tokens: Sequence[int]) -> None:
        """Take in an answer; of one that is too long its last part."""
        kept = list(tokens)[-(self.size - 1) :] if self.size > RUNS[-1] else []
        if len(kept) <= RUNS[-1]:
            return
        if self.end + len(kept) + 1 > self.size:
            self.tokens[self.end :] = END
            self.end, self.is_full = 0, True
        start, self.end = self.end, self.end + len(kept) + 1
        self.tokens[start : self.end] = [*kept, END]
        answer_K = np.array(kept, np.int64)
        for table, run in zip(self.places, RUNS, strict=True):
            if len(kept) > run:
                hashes = hashes_of(answer_K[:-1], run)
                table[hashes % np.uint64(self.size)] = np.arange(start + run, self.end - 1)

    def find(self, latest: Sequence[int], most: int) -> list[tuple[int, list[int]]]:
        """Continuations of these tokens with different beginnings, behind the longest runs first:
        the length of the run before each, and up to `most` tokens."""
        found: dict[int, tuple[int, list[int]]] = {}
        latest_L = np.array(latest[-LONGEST_RUN:], np.int64)
        for table, run in zip(self.places, RUNS, strict=True):
            if run > min(len(latest_L), self.size):
                continue
            place = int(table[hashes_of(latest_L[-run:], run)[0] % np.uint64(self.size)])
            length = self.run_before(place, latest_L)
            if length >= run:
                going_on = self.tokens[place : place + most].tolist()
                whole = going_on[: going_on.index(END)] if END in going_on else going_on
                if whole:
                    found.setdefault(whole[0], (length, whole))
        return list(found.values())[:MAX_BRANCHES]

    def run_before(self, place: int, latest_L: NDArray[np.int64]) -> int:
        """How many of the latest tokens stand before a place too."""
        length = min(place, len(latest_L))
        differs = self.tokens[place - length : place] != latest_L[len(latest_L) - length :]
        return int(differs[::-1].argmax()) if differs.any() else length


def hashes_of(tokens_K: NDArray[np.int64], run: int) -> NDArray[np.uint64]:
    """A hash of each run of so many tokens, (K - run + 1,)."""
    windows_NR = np.lib.stride_tricks.sliding_window_view(tokens_K, run)
    hashes_N = np.zeros(len(windows_NR), np.uint64)
    for column_N in windows_NR.T:
        hashes_N = (hashes_N + column_N.astype(np.uint64) + np.uint64(1)) * FACTOR
        hashes_N ^= hashes_N >> np.uint64(29)
    return hashes_N


class SharedDrafter:
    """Continuations from earlier answers, likeliest first; none without a store."""

    taps: Sequence[int] = ()
    reads_context = False

    def __init__(self, answers: SharedAnswers | None) -> None:
        self.answers = answers

    def cost(self, found: Sequence[Guesses]) -> float:
        """Nothing."""
        return 0.0

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor | None, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        """As from a row's own text (`lookups.py`), for runs of at least RUNS[-1] tokens."""
        return [
            Guesses() if self.answers is None else self.look_up(self.answers, row, budget)
            for row, budget in zip(rows, budgets, strict=True)
        ]

    def look_up(self, answers: SharedAnswers, row: Row, budget: Budget) -> Guesses:
        """Guesses of one row."""
        longest = min(budget.depth, budget.num_guesses, row.settings.lookup - 1)
        if longest < 1 or budget.least_probability == 1:
            return Guesses()
        latest = [*row.prompt[-LONGEST_RUN:], *row.tokens[-LONGEST_RUN:]]
        branches = answers.find(latest, longest)
        return Guesses(branch_guesses(branches, budget, row.ends))

    def accept(self, rows: Sequence[Row], kept: Sequence[Kept]) -> None:
        """Nothing: answers are taken in when they have ended."""
