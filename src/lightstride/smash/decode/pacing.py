"""Whether drafting pays, and how far to believe drafters: what a decoder learns as it goes.

A drafter's chances are its own opinion.  For every drafter and depth, what was accepted over what
was expected of the guesses that were checked, as moving sums, corrects it.

Drafting that costs time (a micro decoder, a head) goes on while the tokens a second expected with
it are, as a moving mean, at least OFF times those expected without.  Else it rests: some steps are
the plain decoder's, then two are drafted for as a probe, and only a gain of ON ends the rest.  The
gap between the two keeps it from going to and fro.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from torch import nn

from lightstride.smash.drafters.guesses import ROOT, Guess, Tree

OFF = 1.03
"""Least gain for which drafting goes on."""
ON = 1.06
"""Least gain of a probe after which it goes on again."""
REST = 16
"""Steps of a rest; each that follows another at once is longer, up to MOST_REST."""
MOST_REST = 64
PROBE = 2
"""Steps of a probe."""
MEMORY = 0.15
"""Weight of the latest step in the mean gain."""
DECAY = 0.99
"""What a step leaves of the sums of accepted and expected guesses."""
PRIOR = 6.0
"""Guesses, as right as they claimed to be, that stand for no experience."""
LEAST_TRUST, MOST_TRUST = 0.2, 1.6


@dataclass
class Pacing:
    """What is known of a decoder's drafters."""

    accepted: dict[tuple[int, int], float] = field(default_factory=dict)
    """By drafter and depth."""
    expected: dict[tuple[int, int], float] = field(default_factory=dict)
    gain: float = ON
    """Moving mean of tokens a second with drafting over those without."""
    rests: int = 0
    """Steps still to come without drafting."""
    rest: int = REST
    probe: list[float] = field(default_factory=list)
    is_probing: bool = False
    num_rows: int = 0

    def start_step(self, num_rows: int) -> bool:
        """Whether to draft in a step of so many rows; a rest is over where they became others."""
        if self.rests and not self.num_rows / 2 < num_rows < self.num_rows * 2:
            self.rests, self.rest = min(self.rests, 1), REST
        if self.rests == 0:
            self.num_rows = num_rows
            return True
        self.rests -= 1
        return False

    def note_gain(self, gain: float) -> None:
        """Hear of a step that was drafted for: its expected tokens a second over those without."""
        if self.is_probing:
            self.probe.append(gain)
            if len(self.probe) < PROBE:
                return
            self.gain = sum(self.probe) / PROBE
            if self.gain < ON:
                self.rest = min(2 * self.rest, MOST_REST)
                self.begin_rest()
            else:
                self.is_probing, self.rest = False, REST
            return
        self.gain += MEMORY * (gain - self.gain)
        if self.gain < OFF:
            self.begin_rest()

    def begin_rest(self) -> None:
        """Leave drafting for some steps, and probe it then."""
        self.rests, self.is_probing = self.rest, True
        self.probe.clear()

    def trust(self, drafter: int, depth: int) -> float:
        """What a claimed chance is to be multiplied with."""
        key = drafter, depth
        found = (self.accepted.get(key, 0.0) + PRIOR) / (self.expected.get(key, 0.0) + PRIOR)
        return min(MOST_TRUST, max(LEAST_TRUST, found))

    def corrected(self, guesses: Sequence[Guess], drafter: int) -> list[Guess]:
        """A drafter's guesses with chances as experience has them; none above its parent's."""
        found: list[Guess] = []
        for guess in guesses:
            before = 1.0 if guess.parent == ROOT else found[guess.parent].probability
            chance = min(before, guess.probability * self.trust(drafter, guess.depth))
            found.append(
                replace(guess, probability=chance, drafter=drafter, claimed=guess.probability)
            )
        return found

    def learn(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]]) -> None:
        """Compare what was claimed of the trees' guesses with the branches that were confirmed."""
        for sums in (self.accepted, self.expected):
            for key in sums:
                sums[key] *= DECAY
        for tree, path in zip(trees, paths, strict=True):
            right = set(path)
            for place, origin in enumerate(tree.origins):
                if origin is not None:
                    key = origin.drafter, tree.depths[place]
                    self.expected[key] = self.expected.get(key, 0.0) + origin.claimed
                    self.accepted[key] = self.accepted.get(key, 0.0) + (place in right)


PACINGS: WeakKeyDictionary[nn.Module, Pacing] = WeakKeyDictionary()
"""By model: what its sessions have learned."""


def pacing_of(model: nn.Module) -> Pacing:
    """What this process knows of a model's drafters."""
    return PACINGS.setdefault(model, Pacing())
