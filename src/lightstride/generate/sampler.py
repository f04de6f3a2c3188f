"""Choosing tokens for the rows of a batch, each with its own history and its own draws.

Shapes: N rows, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightstride.config.decoding import Settings
from lightstride.generate.rows import Row
from lightstride.generate.sampling import Purpose, distribution, draw, penalize, uniform

Processor = Callable[[Row, Sequence[int], Tensor], Tensor]
"""(row, its answer so far with the current step's tokens, logits (V,)) -> logits (V,)."""


class Sampler:
    """Turns logits into tokens as the settings say."""

    def __init__(self, settings: Settings, processor: Processor | None = None) -> None:
        self.settings = settings
        self.processor = processor

    @property
    def reads_history(self) -> bool:
        """Whether logits depend on earlier tokens, so that every draft must be known."""
        return self.processor is not None or self.settings.repetition_penalty != 1

    def process(
        self, logits_NV: Tensor, rows: Sequence[Row], drafts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits after everything that reads history; `drafts` are tokens not yet accepted."""
        if self.settings.repetition_penalty != 1:
            seen_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
            for seen_V, row, draft in zip(seen_NV, rows, drafts, strict=True):
                seen_V[[*row.prompt, *row.tokens, *draft]] = True
            logits_NV = penalize(logits_NV, seen_NV, self.settings.repetition_penalty)
        if self.processor is not None:
            logits_NV = torch.stack(
                [
                    self.processor(row, [*row.tokens, *draft], logits_V)
                    for row, draft, logits_V in zip(rows, drafts, logits_NV, strict=True)
                ]
            )
        return logits_NV

    def probabilities(
        self, logits_NV: Tensor, rows: Sequence[Row], drafts: Sequence[Sequence[int]]
    ) -> Tensor:
        """What tokens are drawn from, shape (N, V); greedy: all on the likeliest."""
        return self.spread(self.process(logits_NV, rows, drafts))

    def spread(self, logits_NV: Tensor) -> Tensor:
        """What tokens are drawn from, given processed logits."""
        if not self.settings.is_greedy:
            return distribution(logits_NV, self.settings)
        best_N1 = logits_NV.argmax(-1, keepdim=True)
        return torch.zeros_like(logits_NV, dtype=torch.float64).scatter_(-1, best_N1, 1)

    def choose(
        self,
        logits_NV: Tensor,
        rows: Sequence[Row],
        drafts: Sequence[Sequence[int]],
        purpose: Purpose = Purpose.TOKEN,
    ) -> Tensor:
        """One token a row, shape (N,), from logits after `drafts`."""
        if self.settings.is_greedy:
            return self.process(logits_NV, rows, drafts).argmax(-1)
        probabilities_NV = self.probabilities(logits_NV, rows, drafts)
        return self.draw(probabilities_NV, rows, drafts, purpose)

    def draw(
        self,
        probabilities_NV: Tensor,
        rows: Sequence[Row],
        drafts: Sequence[Sequence[int]],
        purpose: Purpose,
    ) -> Tensor:
        """One token a row by the row's own random number for that place, shape (N,)."""
        return draw(probabilities_NV, self.uniforms(rows, drafts, purpose).to(probabilities_NV))

    def uniforms(
        self, rows: Sequence[Row], drafts: Sequence[Sequence[int]], purpose: Purpose
    ) -> Tensor:
        """Each row's random number for the token after `drafts`, shape (N,), float64."""
        numbers = [
            uniform(row.key, len(row.tokens) + len(draft), purpose)
            for row, draft in zip(rows, drafts, strict=True)
        ]
        return torch.tensor(numbers, dtype=torch.float64)
