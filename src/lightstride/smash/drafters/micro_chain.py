"""The micro decoder says a segment: one token after the other, while it is sure enough.

The order of a micro step depends on whether the confidence is calibrated (`confidence.py`):

    as published    stop head lets the row go on -> micro step -> token
    calibrated      micro step -> likeliest token -> P(all tokens so far are right) -> token

Shapes: B rows, T taps, D hidden size, M micro vocabulary, V vocabulary, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.generate.sampling import adjusted_logits, distributions, draw_tokens
from lightstride.smash.drafters.guesses import Budget
from lightstride.smash.drafters.lookups import LookupHistory
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.confidence import conditional, log_odds
from lightstride.smash.model.lookup import LookupPrediction
from lightstride.smash.model.modules import MicroCache

NOTHING = LookupPrediction([], 0)


@dataclass
class Chain:
    """One row's segment while it grows; its first token is the base's own."""

    tokens: list[int]
    active: bool
    max_tokens: int
    confidence: float
    prediction: LookupPrediction

    @property
    def drafted(self) -> list[int]:
        """The tokens after the first."""
        return self.tokens[1:]


class MicroChain:
    """Says a segment of every row by the micro decoder."""

    def __init__(self, model: SmashBody, history: LookupHistory) -> None:
        self.model = model
        self.taps: Sequence[int] = model.taps
        self.history = history

    def propose(
        self, rows: Sequence[Row], taps_BTD: Tensor, budgets: Sequence[Budget]
    ) -> list[list[int]]:
        """The tokens of each row behind its first."""
        chains = [self.chain(row, budget) for row, budget in zip(rows, budgets, strict=True)]
        vectors_BD, cache = taps_BTD[:, -1], None
        sure_B = torch.ones(len(rows), device=taps_BTD.device)
        threshold_B = torch.tensor([each.confidence for each in chains], device=taps_BTD.device)
        calibrated = self.model.config.calibration is not None
        place = 0
        while self.stop_head_allows(chains, vectors_BD, threshold_B):
            last_B = torch.tensor([each.tokens[-1] for each in chains], device=taps_BTD.device)
            before_BD = vectors_BD
            vectors_BD, cache = self.micro_step(taps_BTD, last_B, cache)
            logits_BM = self.model.micro_logits(vectors_BD)
            if calibrated:
                sure_B = sure_B * self.next_probability(before_BD, logits_BM, chains, place)
                keep_confident(chains, sure_B, threshold_B)
                if not any(each.active for each in chains):
                    break
            self.extend(rows, chains, logits_BM)
            place += 1
        return [each.drafted for each in chains]

    def chain(self, row: Row, budget: Budget) -> Chain:
        """A row's draft of no tokens yet."""
        first = row.pending[-1]
        most = min(budget.depth, budget.num_guesses, self.model.config.max_segment - 1)
        active = budget.least_probability < 1 and first not in row.ends and most > 0
        prediction = NOTHING
        wants_votes = self.model.config.calibration is not None and row.settings.lookup > 0
        if wants_votes and budget.least_probability < 1:
            lookup = self.history.of_row(row)
            lookup.extend([first])  # it is not in the answer yet, but will be
            prediction = lookup.prediction(self.model.config.max_segment - 1)
        return Chain([first], active, most + 1, budget.least_probability, prediction)

    def micro_step(
        self, taps_BTD: Tensor, last_B: Tensor, cache: MicroCache | None
    ) -> tuple[Tensor, MicroCache]:
        """The vectors that predict the next tokens."""
        if cache is None:
            return self.model.first_micro_step(taps_BTD, last_B)
        return self.model.next_micro_step(last_B, cache)

    def stop_head_allows(
        self, chains: Sequence[Chain], vectors_BD: Tensor, threshold_B: Tensor
    ) -> bool:
        """Whether any row may have one more token; without a calibration the stop head decides."""
        if any(each.active for each in chains) and self.model.config.calibration is None:
            logits_B = self.model.stop_logits(vectors_BD).float()
            keep_confident(chains, torch.sigmoid(-logits_B), threshold_B)
        return any(each.active for each in chains)

    def next_probability(
        self, before_BD: Tensor, logits_BM: Tensor, chains: Sequence[Chain], place: int
    ) -> Tensor:
        """P(a row's likeliest token is right), by the calibration, shape (B,)."""
        calibration = self.model.config.calibration
        assert calibration is not None
        stops_B = self.model.stop_logits(before_BD).float()
        likeliest = self.model.vocabulary_ids(logits_BM.argmax(-1)).tolist()
        votes = [
            each.prediction.vote(each.drafted, token)
            for each, token in zip(chains, likeliest, strict=True)
        ]
        votes_B = torch.tensor(votes, device=stops_B.device)
        features_BF = torch.stack([stops_B, log_odds(logits_BM), votes_B], dim=-1)
        return conditional(features_BF[:, None], calibration[place:])[:, 0]

    def extend(self, rows: Sequence[Row], chains: Sequence[Chain], logits_BM: Tensor) -> None:
        """One more token for each active row, where one is allowed."""
        for row, each, token in zip(
            rows, chains, self.choose_tokens(rows, chains, logits_BM), strict=True
        ):
            each.active = each.active and token is not None
            if each.active and token is not None:
                each.tokens.append(token)
                each.active = token not in row.ends and len(each.tokens) < each.max_tokens

    def choose_tokens(
        self, rows: Sequence[Row], chains: Sequence[Chain], logits_BM: Tensor
    ) -> list[int | None]:
        """A token a row; None where nothing that micro steps can draft is allowed."""
        likeliest = self.model.vocabulary_ids(logits_BM.argmax(-1))
        chosen: list[int | None] = list(likeliest.tolist())
        others = [index for index, row in enumerate(rows) if not row.is_plain]
        if not others:
            return chosen
        theirs = [rows[index] for index in others]
        drafts = [chains[index].tokens for index in others]
        logits_NV = adjusted_logits(self.to_full_vocabulary(logits_BM[others]), theirs, drafts)
        possible = (logits_NV.amax(-1) > -torch.inf).tolist()
        nothing_N1 = ~torch.tensor(possible, device=logits_NV.device)[:, None]
        probabilities_NV = distributions(logits_NV.masked_fill(nothing_N1, 0), theirs)
        drawn = draw_tokens(probabilities_NV, theirs, drafts)
        for index, token, is_possible in zip(others, drawn, possible, strict=True):
            chosen[index] = token if is_possible else None
        return chosen

    def to_full_vocabulary(self, logits_BM: Tensor) -> Tensor:
        """Logits over the whole vocabulary; what micro steps cannot draft is impossible."""
        vocabulary_M = self.model.micro_vocabulary_M
        if vocabulary_M is None:
            return logits_BM
        size = (len(logits_BM), self.model.config.vocab_size)
        return logits_BM.new_full(size, -torch.inf).index_copy(1, vocabulary_M, logits_BM)


def keep_confident(chains: Sequence[Chain], sure_B: Tensor, threshold_B: Tensor) -> None:
    """Let only rows go on that are as sure as asked for."""
    for each, enough in zip(chains, (sure_B >= threshold_B).tolist(), strict=True):
        each.active = each.active and enough
