"""Fitness of many plans in one pass over the dense weights, block by block.

Where the model does not fit in memory, running one candidate after the other would read it as
often as there are candidates.  Here all of them pass a block together: it is read once, every
candidate's activations go through their own cut of it, and then comes the next block.  Candidates
that have had the same blocks so far are one branch and run once.  Windows that the dense model
has not answered yet run along as a branch of their own.

A branch is its hidden states, of all windows; they lie in memory, or in files in a folder.

The same numbers as `Fitness` gives, from the same batches.

Shapes: N windows of a sample, F of them without the dense model's answer, L tokens each,
D hidden size, B windows of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lightstride.distributed import gather_objects, pieces, rank, world_size
from lightstride.models.activations import ActivationStore, Rows, activation_store
from lightstride.models.block_calls import Call, embed
from lightstride.models.opening.source import WeightSource
from lightstride.models.shapes import KINDS, Site
from lightstride.prune.candidate_blocks import CandidateBlock, CutSiteOf, WeightCache
from lightstride.prune.cut.materialize import DenseSites
from lightstride.prune.fitness import (
    DenseAnswer,
    FitnessSettings,
    block_keys,
    mean_divergence,
    shapes_at,
)
from lightstride.prune.space.plan import Plan
from lightstride.search.evaluation_log import Sample
from lightstride.training.top_k_kl import concatenate, relative_error, remember, split


@dataclass
class Branch:
    """Candidates that have had the same blocks so far."""

    plans: list[int]
    """Their places among the plans that are swept."""
    hidden_NLD: Rows
    errors: float = 0.0
    """Relative errors of hidden states so far, summed over windows."""


@dataclass
class Sweep:
    """What passes the blocks: the branches, and the dense model on windows it has not answered."""

    plans: Sequence[Plan]
    windows: Sequence[int]
    tokens_NL: Tensor
    step: int
    """Windows that run through a block at once."""
    calls: Mapping[int, Sequence[Call]]
    """How blocks are called, by the number of windows."""
    shelf: ActivationStore
    branches: list[Branch]
    fresh: Sequence[int]
    """Places, among the windows, of those without the dense model's answer."""
    dense_FLD: Rows
    """The dense model's hidden states on those."""
    compared: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """The dense model's hidden states (L, D) by block and window, where they are compared."""


def row_batches(count: int, step: int) -> list[slice]:
    """Consecutive rows in batches of at most `step`."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


@dataclass(frozen=True)
class Fork:
    """Candidates of one branch that have the same shapes in the next block."""

    branch: Branch
    plans: list[int]
    is_last: bool
    """True if nobody needs the branch's hidden states afterwards."""


def forks(branches: Sequence[Branch], plans: Sequence[Plan], index: int) -> list[Fork]:
    """All branches after a block; those with the same shapes there stand together."""
    members: dict[tuple[object, int], list[int]] = {}
    for number, branch in enumerate(branches):
        for plan in branch.plans:
            key = (tuple(shapes_at(plans[plan], index).values()), number)
            members.setdefault(key, []).append(plan)
    last = {key[1]: key for key in sorted(members)}
    return [
        Fork(branches[key[1]], members[key], is_last=last[key[1]] == key) for key in sorted(members)
    ]


@dataclass
class SweptFitness:
    """Answers `Evaluate` as `Fitness` does, for a model that is read block by block."""

    source: WeightSource
    windows_NL: Tensor
    level_of: CutSiteOf
    settings: FitnessSettings = field(default_factory=FitnessSettings)
    dense_answers: dict[int, DenseAnswer] = field(default_factory=dict)
    """The dense model's answers by window, last used last; fitnesses of equal settings share."""
    spill: Path | None = None
    """Folder for hidden states that memory is too small for."""

    def __call__(self, plans: Sequence[Plan], sample: Sample) -> list[float]:
        """Fitness of each plan in nats a token, lower is better; ranks share the plans out."""
        order = sorted(range(len(plans)), key=lambda i: block_keys(plans[i]))
        mine = pieces(range(len(order)), world_size())[rank()]
        wanted = self.settings.windows_of(sample, self.windows_NL)
        with torch.inference_mode():
            found = self.sweep([plans[order[i]] for i in mine], wanted)
        answers = [value for part in gather_objects(found) for value in part]
        by_plan = dict(zip(order, answers, strict=True))
        return [by_plan[i] for i in range(len(plans))]

    def sweep(self, plans: Sequence[Plan], windows: Sequence[int]) -> list[float]:
        """Fitness of each plan over these windows, in one pass."""
        values = [0.0] * len(plans)
        with activation_store(self.spill) as shelf:
            state = self.begin(plans, windows, shelf)
            with self.source.blocks() as blocks:
                for index, block in enumerate(blocks):
                    self.pass_block(index, block, state)
            with self.source.head():
                self.answer_dense(state)
                for branch in state.branches:
                    value = self.score(branch, state) / len(windows)
                    for plan in branch.plans:
                        values[plan] = value
        for window in windows:
            self.dense_answers[window] = self.dense_answers.pop(window)
        while len(self.dense_answers) > self.settings.most_answers(self.windows_NL.shape[1]):
            del self.dense_answers[next(iter(self.dense_answers))]
        return values

    def begin(self, plans: Sequence[Plan], windows: Sequence[int], shelf: ActivationStore) -> Sweep:
        """Everything as it is before the first block."""
        tokens_NL = self.windows_NL[list(windows)]
        step = max(1, self.settings.batch_tokens // tokens_NL.shape[1])
        fresh = [place for place, w in enumerate(windows) if w not in self.dense_answers]
        sizes = {rows.stop - rows.start for rows in row_batches(len(fresh), step)}
        extra = [slice(0, size) for size in sorted(sizes)]  # only to see how blocks are called
        batches = [*extra, *row_batches(len(windows), step)]
        hidden_NLD, calls = embed(self.source, tokens_NL, batches, shelf)
        dense_FLD = shelf.room(len(fresh), *hidden_NLD.shape[1:], dtype=hidden_NLD.dtype)
        for row, place in enumerate(fresh):
            dense_FLD[row : row + 1] = hidden_NLD[place : place + 1]
        branches = [Branch(list(range(len(plans))), hidden_NLD)] if plans else []
        return Sweep(plans, windows, tokens_NL, step, calls, shelf, branches, fresh, dense_FLD)

    def pass_block(self, index: int, block: nn.Module, state: Sweep) -> None:
        """Bring the dense model and all branches to the end of a block, which is dense again."""
        adapter = self.source.adapter
        weights = {Site(index, kind): adapter.read(block, kind) for kind in KINDS}
        dense = DenseSites(self.source.geometry, weights)
        cache = WeightCache(dense, self.level_of, self.settings.cache_bytes // 2)
        candidate = CandidateBlock(adapter, block, index, cache)
        calls = {size: some[index].to(self.source.device) for size, some in state.calls.items()}
        try:
            for rows in row_batches(len(state.fresh), state.step):
                state.dense_FLD[rows] = self.run(candidate, state.dense_FLD[rows], calls)
            self.note_compared(index, state)
            state.branches = [
                self.grow(fork, candidate, calls, state)
                for fork in forks(state.branches, state.plans, index)
            ]
        finally:
            candidate.restore()

    def run(
        self, candidate: CandidateBlock, hidden_BLD: Tensor, calls: Mapping[int, Call]
    ) -> Tensor:
        """A batch's hidden states after a block."""
        return candidate(hidden_BLD.to(self.source.device), calls[len(hidden_BLD)])

    def grow(
        self, fork: Fork, candidate: CandidateBlock, calls: Mapping[int, Call], state: Sweep
    ) -> Branch:
        """The branch of a fork, after the block; in the place of the one before if it can."""
        before, index = fork.branch.hidden_NLD, candidate.index
        candidate.install(shapes_at(state.plans[fork.plans[0]], index))
        after = before if fork.is_last else state.shelf.room(*before.shape, dtype=before.dtype)
        errors = fork.branch.errors
        for rows in row_batches(len(state.windows), state.step):
            hidden_BLD = self.run(candidate, before[rows], calls)
            after[rows] = hidden_BLD
            for window, hidden_LD in zip(state.windows[rows], hidden_BLD, strict=True):
                if (index, window) in state.compared:
                    dense_LD = state.compared[index, window].to(hidden_LD.device)
                    errors += float(relative_error(dense_LD, hidden_LD))
        return Branch(fork.plans, after, errors)

    def note_compared(self, index: int, state: Sweep) -> None:
        """Keep the dense model's hidden states after a block if they are compared."""
        settings = self.settings
        if not settings.hidden_weight or index not in settings.hidden_blocks:
            return
        for window in state.windows:
            if window in self.dense_answers:
                state.compared[index, window] = self.dense_answers[window].hidden[index]
        for row, place in enumerate(state.fresh):
            state.compared[index, state.windows[place]] = state.dense_FLD[row : row + 1][0].clone()

    def answer_dense(self, state: Sweep) -> None:
        """Keep the dense model's predictions on the windows without."""
        for rows in row_batches(len(state.fresh), state.step):
            places = state.fresh[rows]
            slices = self.logits(state.tokens_NL[list(places)], state.dense_FLD[rows])
            teacher = concatenate([remember(p, self.settings.top_k) for p in slices])
            for place, each in zip(places, split(teacher, len(places)), strict=True):
                window = state.windows[place]
                hidden = {i: kept for (i, of), kept in state.compared.items() if of == window}
                self.dense_answers[window] = DenseAnswer(each, hidden)

    def score(self, branch: Branch, state: Sweep) -> float:
        """Fitness of a branch at its end, summed over windows."""
        total = self.settings.hidden_weight * branch.errors
        for rows in row_batches(len(state.windows), state.step):
            answers = [self.dense_answers[window] for window in state.windows[rows]]
            teacher = concatenate([answer.teacher for answer in answers])
            slices = self.logits(state.tokens_NL[rows], branch.hidden_NLD[rows])
            mean = mean_divergence(teacher, slices, renormalize=self.settings.renormalize)
            total += mean * len(answers)
        return total

    def logits(self, tokens_BL: Tensor, hidden_BLD: Tensor) -> Iterator[Tensor]:
        """Logits of the scored positions, a slice of them at a time."""
        source = self.source
        return self.settings.scored_logits(
            source.model,
            source.adapter,
            tokens_BL.to(source.device),
            hidden_BLD.to(source.device),
        )
