"""Measures the held-out text while a model learns, and foresees what comes of it."""

import sys
import time
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from lightstride import distributed
from lightstride.commands.recovering.texts import Texts
from lightstride.config import RecoverConfig
from lightstride.distributed import rank
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.families.registry import adapter_for
from lightstride.recover.extrapolate import Forecast, extrapolate
from lightstride.training.checkpoint import Progress
from lightstride.training.fsdp import is_shared_out

EARLY_LOOKS = 5
"""Measurements until the forecast; the first is before the training, the others make it."""
LEAST_STEPS = 12
"""Steps that a forecast needs: from four of them it said 33.5 where 30.5 came (`LOG.md`)."""
EARLY_SECONDS = 30.0
"""Time between them, or an eighth of the whole where that is less."""
LATER_LOOKS = 6
"""Measurements after the forecast."""
WINDOWS = 4
"""Of the held-out text, measured at once."""


class Watch:
    """Measures the held-out text while a model learns, and says once what to expect."""

    def __init__(self, model: PreTrainedModel, texts: Texts, config: RecoverConfig) -> None:
        assert config.minutes is not None
        self.model, self.texts, self.config = model, texts, config
        self.whole = 60 * config.minutes
        self.spacing = min(EARLY_SECONDS, self.whole / 8)
        self.final = float("nan")
        self.final_seconds = 0.0

    def __call__(self, at: Progress) -> None:
        """Measure where it is due."""
        done = len(at.evaluations)
        early = self.spacing * (EARLY_LOOKS - 1)
        due = self.spacing * done
        if done >= EARLY_LOOKS:
            due = early + (done - EARLY_LOOKS + 1) * (self.whole - early) / (LATER_LOOKS + 1)
        if at.used >= due:
            at.evaluations.append({"step": at.step, "seconds": at.used, "nll": self.nll()})
            if len(at.evaluations) == EARLY_LOOKS and rank() == 0:
                sys.stderr.write(f"\nlightstride: {self.sentence(at)}\n")

    def end(self) -> None:
        """Measure what has come of it."""
        start = time.perf_counter()
        self.final = self.nll()
        self.final_seconds = time.perf_counter() - start

    def nll(self) -> float:
        """Held-out loss in nats."""
        found = 0.0
        decoder = adapter_for(self.model.config).decoder(self.model)
        if rank() == 0 or is_shared_out(decoder):  # a forward then needs all processes
            found = perplexity(self.model, self.texts.held_out, batch_size=WINDOWS).nll
        return distributed.broadcast_object(found)

    def forecast(self, at: Progress) -> Forecast | None:
        """The end as it was seen from the early measurements; None where they do not show it."""
        seen = self.first_looks(at)
        if seen is None:
            return None
        steps = [float(str(each["step"])) for each in seen]
        losses = [float(str(each["nll"])) for each in seen]
        seconds = float(str(seen[-1]["seconds"]))
        return extrapolate(steps, losses, steps[-1] / seconds * self.whole)

    @staticmethod
    def first_looks(at: Progress) -> Sequence[Mapping[str, object]] | None:
        """The early measurements after the one before the training; None before enough steps."""
        learned = [each for each in at.evaluations[:EARLY_LOOKS] if each["step"]]
        steps = {int(str(each["step"])) for each in learned}
        if len(steps) < EARLY_LOOKS - 1 or max(steps) < LEAST_STEPS:
            return None
        return learned

    def sentence(self, at: Progress) -> str:
        """Tokens a second, and the perplexity to expect at the end."""
        rate = f"{at.step * self.config.step_tokens / max(at.used, 1e-3):,.0f} tokens/s"
        found = self.forecast(at)
        if found is None and self.first_looks(at) is None:
            return f"{rate}; too few steps yet for a forecast"
        if found is None:
            return f"{rate}; the held-out loss does not fall yet, so there is no forecast"
        return (
            f"{rate}; after {self.config.minutes:g} minutes expect a perplexity of "
            f"{found.perplexity:.2f} ({found.low:.2f} to {found.high:.2f})"
        )


def measured(watch: Watch, at: Progress, texts: Texts, config: RecoverConfig) -> dict[str, object]:
    """The held-out loss at the end, and how it came to it."""
    found = watch.forecast(at)
    before = float(str(at.evaluations[0]["nll"]))
    tokens = at.step * config.step_tokens
    return {
        "perplexity": float(torch.tensor(watch.final, dtype=torch.float64).exp()),
        "unrecovered": float(torch.tensor(before, dtype=torch.float64).exp()),
        "forecast": None if found is None else found.as_dict(),
        "steps": at.step,
        "skipped_steps": at.skipped,
        "tokens": tokens,
        "distinct_tokens": texts.rows.tokens_NL.numel(),
        "seconds": at.seconds,
        "processor_seconds": at.processor_seconds,
        "tokens_per_second": tokens / at.seconds if at.seconds else None,
        "measuring_seconds": watch.final_seconds,
        "losses": at.losses,
        "evaluations": at.evaluations,
    }
