"""Whether drafting pays, and how far to believe drafters: what a decoder learns as it goes.

A drafter's chances are its own opinion.  For every drafter and depth, what was accepted over what
was expected of the guesses that were checked, as moving sums, corrects it.  The rows of a step are
much alike (they begin alike, and copy alike), so all of them together count as one.

Drafting that costs time (a micro decoder, a head) goes on while the tokens a second expected with
it are, as a moving mean, at least OFF times those expected without.  Else it rests: some steps are
the plain decoder's, then two are drafted for as a probe, and only a gain of ON ends the rest.  The
gap between the two keeps it from going to and fro.  Few rows and many each have a pace of their
own, which begins with a probe too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
FIRST_PROBE = 8
"""Drafts, of all rows together, in the first probe, if that is more: one step of one row says
little."""
MEMORY = 0.15
"""Weight of the latest step in the mean gain."""
DECAY = 0.99
"""What a step leaves of the sums of accepted and expected guesses."""
PRIOR = 20.0
"""Guesses of a row, as right as they claimed to be, that stand for no experience."""
LEAST_TRUST, MOST_TRUST = 0.2, 1.25


@dataclass
class Pace:
    """When to draft, for about as many rows as there are."""

    gain: float = ON
    """Moving mean of tokens a second with drafting over those without."""
    rests: int = 0
    """Steps still to come without drafting."""
    rest: int = REST // 2
    """Steps of the latest rest."""
    probe: list[float] = field(default_factory=list)
    probes: int = PROBE
    """Steps that the probe at hand has in all; 0: none is made."""

    @classmethod
    def of_rows(cls, num_rows: int) -> "Pace":
        """That of so many rows, of which nothing is known."""
        return cls(probes=max(PROBE, FIRST_PROBE // num_rows))

    def start_step(self) -> bool:
        """Whether to draft in a step."""
        if self.rests == 0:
            return True
        self.rests -= 1
        return False

    def note_gain(self, gain: float) -> None:
        """Hear of a step that was drafted for: its expected tokens a second over those without."""
        if self.probes:
            self.probe.append(gain)
            if len(self.probe) < self.probes:
                return
            self.gain = sum(self.probe) / self.probes
            if self.gain < ON:
                self.begin_rest()
            else:
                self.probes, self.rest = 0, REST // 2
            return
        self.gain += MEMORY * (gain - self.gain)
        if self.gain < OFF:
            self.begin_rest()

    def begin_rest(self) -> None:
        """Leave drafting for some steps, and probe it then."""
        self.rest = min(2 * self.rest, MOST_REST)
        self.rests, self.probes = self.rest, PROBE
        self.probe.clear()


@dataclass
class Pacing:
    """What is known of a decoder's drafters."""

    accepted: dict[tuple[int, int], float] = field(default_factory=dict)
    """By drafter and depth."""
    expected: dict[tuple[int, int], float] = field(default_factory=dict)
    paces: dict[int, Pace] = field(default_factory=dict)
    """By the number of rows, to a factor of two."""

    def of_rows(self, num_rows: int) -> Pace:
        """The pace of so many rows."""
        size = num_rows.bit_length()
        if size not in self.paces:
            self.paces[size] = Pace.of_rows(num_rows)
        return self.paces[size]

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
                Guess(chance, guess.token, guess.parent, guess.depth, drafter, guess.probability)
            )
        return found

    def learn(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]]) -> None:
        """Compare what was claimed of the trees' guesses with the branches that were confirmed."""
        for sums in (self.accepted, self.expected):
            for key in sums:
                sums[key] *= DECAY
        share = 1 / len(trees)
        for tree, path in zip(trees, paths, strict=True):
            right = set(path)
            for place, origin in enumerate(tree.origins):
                if origin is not None:
                    key = origin.drafter, tree.depths[place]
                    expected, accepted = share * origin.claimed, share * (place in right)
                    self.expected[key] = self.expected.get(key, 0.0) + expected
                    self.accepted[key] = self.accepted.get(key, 0.0) + accepted


PACINGS: WeakKeyDictionary[nn.Module, Pacing] = WeakKeyDictionary()
"""By model: what its sessions have learned."""


def pacing_of(model: nn.Module) -> Pacing:
    """What this process knows of a model's drafters."""
    return PACINGS.setdefault(model, Pacing())
