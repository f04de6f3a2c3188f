"""The micro loop: from the features of a slot to the tokens of the next segment.

Shapes: B rows, T taps, D hidden size, M micro vocabulary, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightstride.generate.rows import Row
from lightstride.generate.sampler import Sampler
from lightstride.generate.sampling import Purpose
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.confidence import conditional, log_odds
from lightstride.smash.model.lookup import Expected, Lookups
from lightstride.smash.model.modules import MicroCache


@dataclass
class Draft:
    """A segment for every row, its first token included."""

    segments: list[list[int]]
    probabilities: list[Tensor]
    """For each place what its tokens were drawn from, (B, V); empty unless asked for."""


class Drafter:
    """Says the tokens of a segment after the first, while the stop head lets it."""

    def __init__(
        self,
        model: SmashBody,
        sampler: Sampler,
        ends: frozenset[int],
        *,
        checked: bool,
        longest: int = 0,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.ends = ends
        self.checked = checked
        """Whether the base checks the tokens: then draws and their probabilities are a draft's."""
        self.lookups = Lookups(longest if sampler.settings.confidence != 1 else 0, ends)

    def draft(self, batch: Sequence[Row], taps_BTD: Tensor, first: Sequence[int]) -> Draft:
        """Segments that start with `first`; when checked, `first` is already in the answers."""
        emitted = int(self.checked)
        draft = Draft([[token] for token in first], [])
        left = [row.limit - len(row.tokens) + emitted for row in batch]
        going = [
            row.finish_reason is None and token not in self.ends and space > 1
            for row, token, space in zip(batch, first, left, strict=True)
        ]
        found = self.look_up(batch, draft, going, left)
        going = [goes and not looked for goes, looked in zip(going, found, strict=True)]
        self.go_through(batch, taps_BTD, draft, going, left)
        if not (self.sampler.settings.is_greedy and not self.sampler.reads_history):
            self.note_found(draft, found)
        return draft

    def look_up(
        self, batch: Sequence[Row], draft: Draft, going: Sequence[bool], left: Sequence[int]
    ) -> list[bool]:
        """Rows whose segment was found in what they said before; their segments are extended."""
        found = [False] * len(batch)
        for place, (row, goes, space) in enumerate(zip(batch, going, left, strict=True)):
            proposed = self.lookups.propose(row, space - 1) if goes else []
            draft.segments[place].extend(proposed)
            found[place] = bool(proposed)
        return found

    def note_found(self, draft: Draft, found: Sequence[bool]) -> None:
        """Tokens that were looked up were certain: say so among the probabilities."""
        size = (len(found), self.model.config.vocab_size)
        longest = max((len(s) for s, f in zip(draft.segments, found, strict=True) if f), default=1)
        while len(draft.probabilities) < longest - 1:
            draft.probabilities.append(torch.zeros(size, device=self.model.device))
        for row, (segment, looked) in enumerate(zip(draft.segments, found, strict=True)):
            for place, token in enumerate(segment[1:] if looked else []):
                draft.probabilities[place][row] = 0
                draft.probabilities[place][row, token] = 1

    def go_through(
        self,
        batch: Sequence[Row],
        taps_BTD: Tensor,
        draft: Draft,
        going: list[bool],
        left: Sequence[int],
    ) -> None:
        """The micro loop: extend the segments of the rows that are going."""
        emitted = int(self.checked)
        most = self.model.config.max_segment
        place = 0
        vectors_BD, cache = taps_BTD[:, -1], None
        sure_B = torch.ones(len(batch), device=taps_BTD.device)
        expected = self.expect(batch, draft.segments)
        while any(going := self.asked_before(going, vectors_BD)):
            last_B = torch.tensor([s[-1] for s in draft.segments], device=taps_BTD.device)
            before_BD = vectors_BD
            vectors_BD, cache = self.micro(taps_BTD, last_B, cache)
            logits_BM = self.model.micro_logits(vectors_BD)
            if self.model.config.calibration is not None:
                said_before = self.opinions(expected, draft.segments, logits_BM)
                sure_B = sure_B * self.right(before_BD, logits_BM, said_before, place)
                going = self.sure(going, sure_B)
                if not any(going):
                    break
            said = self.say(batch, logits_BM, draft, emitted)
            for row, token in enumerate(said):
                going[row] = going[row] and token is not None
                if going[row] and token is not None:
                    draft.segments[row].append(token)
                    length = len(draft.segments[row])
                    going[row] = token not in self.ends and length < min(most, left[row])
            place += 1

    def micro(
        self, taps_BTD: Tensor, last_B: Tensor, cache: MicroCache | None
    ) -> tuple[Tensor, MicroCache]:
        """The vectors that predict the next tokens."""
        if cache is None:
            return self.model.start_micro(taps_BTD, last_B)
        return self.model.go_on_micro(last_B, cache)

    def asked_before(self, going: list[bool], vectors_BD: Tensor) -> list[bool]:
        """Rows that may say one more token in this step.

        Without a calibration the stop head decides, as published; with one it is decided when the
        token is known, by the probability that all so far are right.
        """
        confidence = self.sampler.settings.confidence
        if confidence == 1 or not any(going):
            return [False] * len(going)
        if self.model.config.calibration is not None:
            return going
        logits_B = self.model.stop_logits(vectors_BD).float()
        return self.sure(going, torch.sigmoid(-logits_B))

    def expect(self, batch: Sequence[Row], segments: Sequence[Sequence[int]]) -> list[Expected]:
        """What may follow the first token of each segment because it did before."""
        settings = self.sampler.settings
        if (
            self.model.config.calibration is None
            or settings.lookup == 0
            or settings.confidence == 1
        ):
            return [Expected([], 0)] * len(batch)
        found = []
        for row, segment in zip(batch, segments, strict=True):
            lookup = self.lookups.of(row)
            if not self.checked:  # its first token is not in the answer yet, but will be
                lookup.extend(segment[:1])
            found.append(lookup.expect(self.model.config.max_segment - 1))
        return found

    def opinions(
        self, expected: Sequence[Expected], segments: Sequence[Sequence[int]], logits_BM: Tensor
    ) -> list[float]:
        """What was said before in the place of each row's likeliest token."""
        likeliest = self.model.to_tokens(logits_BM.argmax(-1)).tolist()
        return [
            each.opinion(segment[1:], token)
            for each, segment, token in zip(expected, segments, likeliest, strict=True)
        ]

    def right(
        self, before_BD: Tensor, logits_BM: Tensor, said_before: Sequence[float], place: int
    ) -> Tensor:
        """P(a row's likeliest token is right), by the calibration, shape (B,)."""
        calibration = self.model.config.calibration
        assert calibration is not None
        stops_B = self.model.stop_logits(before_BD).float()
        said_before_B = torch.tensor(said_before, device=stops_B.device)
        features_BF = torch.stack([stops_B, log_odds(logits_BM), said_before_B], dim=-1)
        return conditional(features_BF[:, None], calibration[place:])[:, 0]

    def sure(self, going: list[bool], sure_B: Tensor) -> list[bool]:
        """Those of the rows that are as sure as asked for."""
        confidence = self.sampler.settings.confidence
        assert confidence is not None
        enough = (sure_B >= confidence).tolist()
        return [row and sure for row, sure in zip(going, enough, strict=True)]

    def say(
        self, batch: Sequence[Row], logits_BM: Tensor, draft: Draft, emitted: int
    ) -> list[int | None]:
        """A token a row; None where nothing that micro steps can say is allowed."""
        sampler = self.sampler
        if sampler.settings.is_greedy and not sampler.reads_history:
            tokens: list[int | None] = list(self.model.to_tokens(logits_BM.argmax(-1)).tolist())
            return tokens
        said = [segment[emitted:] for segment in draft.segments]
        logits_BV = sampler.process(self.widen(logits_BM), batch, said)
        possible = (logits_BV.amax(-1) > -torch.inf).tolist()
        logits_BV = logits_BV.masked_fill(~torch.tensor(possible)[:, None].to(logits_BV.device), 0)
        probabilities_BV = sampler.spread(logits_BV)
        purpose = Purpose.DRAFT if self.checked else Purpose.TOKEN
        if self.checked:
            draft.probabilities.append(probabilities_BV)
        chosen = sampler.draw(probabilities_BV, batch, said, purpose).tolist()
        return [token if allowed else None for token, allowed in zip(chosen, possible, strict=True)]

    def widen(self, logits_BM: Tensor) -> Tensor:
        """Logits over the whole vocabulary; what micro steps cannot say is impossible."""
        vocabulary_M = self.model.micro_vocabulary_M
        if vocabulary_M is None:
            return logits_BM
        size = (len(logits_BM), self.model.config.vocab_size)
        return logits_BM.new_full(size, -torch.inf).index_copy(1, vocabulary_M, logits_BM)
