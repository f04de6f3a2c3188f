"""Drafts that branch: the likely continuations of a row, as a tree that the base reads at once.

A forward of several columns costs a base that waits for its weights hardly more than one of one
column, so second and third guesses are worth checking.  A tree is grown level by level with the
micro decoder and keeps the guesses of the greatest joint probability (as EAGLE-2, arXiv 2406.16858,
chooses them).  What was looked up are guesses like any others.

Shapes: N guesses to go on from, K guesses at the token after each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.lookup import Lookups
from lightstride.smash.model.modules import MicroCache

ROOT = -1
LEAST_HOPE = 0.1
"""A level is added while its guesses, of a row on average, are right with this probability: it
takes a micro step, 3% of a forward of SmolLM2-135M, and the level below is right about every
other time."""


@dataclass
class Tree:
    """Tokens after one that is certain, the first; a token's parent always comes before it."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [ROOT])
    depths: list[int] = field(default_factory=lambda: [0])
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    """Where a token is, by its parent and itself."""

    def add(self, parent: int, token: int) -> int:
        """Where the token is as a child of `parent`; it is added if it is not there."""
        place = self.children.setdefault((parent, token), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
        return place


@dataclass(frozen=True)
class Guess:
    """A token that may come, and what it hangs on."""

    chance: float
    """Of it and all tokens before it in its branch together."""
    token: int
    parent: int
    """The guess before it in its row's list, or ROOT."""
    depth: int


class TreeDrafter:
    """Grows a tree for every row."""

    def __init__(
        self,
        model: SmashBody,
        ends: frozenset[int],
        *,
        confidence: float,
        longest: int,
    ) -> None:
        self.model = model
        self.ends = ends
        self.confidence = confidence
        """Least joint probability of a guess; 1 guesses nothing."""
        self.most = 1
        """Most tokens of the trees at hand."""
        self.lookups = Lookups(longest if confidence < 1 else 0, ends)

    def draft(
        self, batch: Sequence[Row], taps_BTD: Tensor, first: Sequence[int], most: int
    ) -> list[Tree]:
        """A tree a row, of at most so many tokens; its first token is in the answer already."""
        self.most = most
        trees = [Tree([token]) for token in first]
        rooms = {
            index: row.limit - len(row.tokens)
            for index, (row, token) in enumerate(zip(batch, first, strict=True))
            if row.finish_reason is None and token not in self.ends
        }
        rooms = {index: room for index, room in rooms.items() if room > 0}
        if self.confidence == 1 or self.most == 1 or not rooms:
            return trees
        for index, guesses in self.guess(batch, taps_BTD, first, rooms).items():
            attach(trees[index], guesses, self.most)
        return trees

    def guess(
        self,
        batch: Sequence[Row],
        taps_BTD: Tensor,
        first: Sequence[int],
        rooms: Mapping[int, int],
    ) -> dict[int, list[Guess]]:
        """What was looked up and what the micro decoder expects, at most `rooms` tokens deep."""
        found = {row: self.look_up(batch[row], room) for row, room in rooms.items()}
        rows = torch.tensor(list(rooms), device=taps_BTD.device)
        tips = [(row, ROOT) for row in rooms]
        vectors_ND, cache = self.model.start_micro(
            taps_BTD[rows], self.ids([first[r] for r in rooms])
        )
        last = self.model.config.max_segment - 1
        for depth in range(1, last + 1):
            chances, tokens = self.likeliest(vectors_ND)
            sources: list[int] = []
            level: list[tuple[int, int]] = []
            for source, (row, parent) in enumerate(tips):
                before = 1.0 if parent == ROOT else found[row][parent].chance
                for chance, token in zip(chances[source], tokens[source], strict=True):
                    if before * chance < self.confidence:
                        break
                    level.append((row, len(found[row])))
                    sources.append(source)
                    found[row].append(Guess(before * chance, token, parent, depth))
            going = [
                (source, tip)
                for source, tip in zip(sources, level, strict=True)
                if self.goes_on(found[tip[0]], tip[1], rooms[tip[0]])
            ]
            tips = [tip for _, tip in going]
            hope = sum(found[row][guess].chance for row, guess in tips)
            if depth == last or hope < LEAST_HOPE * len(rooms):
                break
            last_N = self.ids([found[row][guess].token for row, guess in tips])
            cache = branches(cache, self.ids([source for source, _ in going]))
            vectors_ND, cache = self.model.go_on_micro(last_N, cache)
        return found

    def look_up(self, row: Row, room: int) -> list[Guess]:
        """What followed the latest tokens before."""
        guesses: list[Guess] = []
        left = 1.0
        for tokens, chances in self.lookups.proposals(row, min(room, self.most - 1)):
            chance, parent = left, ROOT
            for depth, (token, right) in enumerate(zip(tokens, chances, strict=True), 1):
                chance *= right
                if chance < self.confidence:
                    break
                guesses.append(Guess(chance, token, parent, depth))
                parent = len(guesses) - 1
            left *= 1 - chances[0]
        return guesses

    def goes_on(self, guesses: Sequence[Guess], index: int, room: int) -> bool:
        """Whether a guess may have others behind it that get into the tree."""
        guess = guesses[index]
        better = sum(other.chance > guess.chance for other in guesses)
        return guess.depth < room and guess.token not in self.ends and better < self.most - 1

    def likeliest(self, vectors_ND: Tensor) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens that the micro decoder finds likeliest, best first."""
        chances_NM = self.model.micro_logits(vectors_ND).float().softmax(-1)
        chances_NK, ids_NK = chances_NM.topk(min(self.most - 1, chances_NM.shape[-1]))
        return chances_NK.tolist(), self.model.to_tokens(ids_NK).tolist()

    def ids(self, values: Sequence[int]) -> Tensor:
        """Whole numbers on the model's device."""
        return torch.tensor(values, device=self.model.device)


def branches(cache: MicroCache, sources_N: Tensor) -> MicroCache:
    """The micro decoder's cache for guesses, given what each hangs on."""
    return [(key[sources_N], value[sources_N]) for key, value in cache]


def attach(tree: Tree, guesses: Sequence[Guess], most: int) -> None:
    """Add the likeliest guesses, up to so many tokens of the tree in all."""
    places: dict[int, int] = {ROOT: 0}
    for index in sorted(range(len(guesses)), key=lambda i: -guesses[i].chance):
        if len(tree.tokens) == most:
            return
        places[index] = tree.add(places[guesses[index].parent], guesses[index].token)
