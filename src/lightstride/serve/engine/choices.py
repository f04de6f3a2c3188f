"""What a request has to say on every token, beyond its settings: a hook of the session.

The hook gets all tokens of the answer so far, drafts of the current step included, so that it
holds at every place that a step may accept.  It never raises: a problem is noted, and the engine
ends the answer with it.

Shapes: V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightstride.serve.engine.grammar import Matcher
from lightstride.serve.seam import Ask


class Choices:
    """Biases, penalties for what was said, and the grammar of one answer."""

    def __init__(self, ask: Ask, matcher: Matcher | None) -> None:
        self.biases = ask.logit_bias
        self.presence = ask.presence_penalty
        self.frequency = ask.frequency_penalty
        self.matcher = matcher
        self.problem: str | None = None

    def __call__(self, said: Sequence[int], logits_V: Tensor) -> Tensor:
        """Logits after everything that this request asks for, shape (V,)."""
        changed_V = logits_V.float().clone()
        if self.presence or self.frequency:
            counts_V = torch.bincount(
                torch.tensor(said, dtype=torch.long, device=changed_V.device),
                minlength=len(changed_V),
            )
            changed_V -= self.presence * (counts_V > 0) + self.frequency * counts_V
        for token, bias in self.biases:
            changed_V[token] += bias
        if self.matcher is not None:
            self.restrict(self.matcher, said, changed_V)
        return changed_V

    def restrict(self, matcher: Matcher, said: Sequence[int], logits_V: Tensor) -> None:
        """Forbid, in place, every token that the grammar forbids after what was said."""
        allowed = matcher.allowed(said)
        if allowed is None:
            self.problem = self.problem or matcher.problem
            return
        mask_V = torch.zeros(len(logits_V), dtype=torch.bool)
        size = min(len(logits_V), len(allowed))
        mask_V[:size] = torch.from_numpy(allowed[:size])
        logits_V.masked_fill_(~mask_V.to(logits_V.device), -torch.inf)


def choices_of(ask: Ask, matcher: Matcher | None) -> Choices | None:
    """The hook of a request; None where it has nothing to say."""
    if matcher or ask.logit_bias or ask.presence_penalty or ask.frequency_penalty:
        return Choices(ask, matcher)
    return None
