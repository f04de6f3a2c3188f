"""Whole answers from any decoder, streamed or at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightstride.config.decoding import Settings
from lightstride.generate.decoder import Decoder, Step
from lightstride.generate.rows import FinishReason


@dataclass(frozen=True)
class Generation:
    """One answer and what it cost."""

    text: str
    """The answer, without stop string and special tokens."""
    tokens: tuple[int, ...]
    """Its tokens, an end token or those of the stop string included."""
    steps: tuple[tuple[int, ...], ...]
    """The same tokens, grouped by the forward of the base model that brought them."""
    prompt_tokens: int
    kv_entries: int
    """KV entries stored for the answer (the last step's are not needed and not stored)."""
    kv_bytes: int
    """Bytes of those entries over all layers."""
    seconds: float
    """Wall time of the whole batch, up to this row's end."""
    finish_reason: FinishReason

    @property
    def macro_steps(self) -> int:
        """Forwards of the base model."""
        return len(self.steps)

    @property
    def tokens_per_step(self) -> float:
        return len(self.tokens) / len(self.steps)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> list[Generation]:
    """Answer every prompt; `on_step` is called with each step as it comes (streaming)."""
    start = time.perf_counter()
    steps: list[Step] = []
    moments: list[float] = []
    for step in decoder.steps(prompts, settings):
        steps.append(step)
        moments.append(time.perf_counter() - start)
        if on_step is not None:
            on_step(step)
    return [gather(row, len(prompt), steps, moments) for row, prompt in enumerate(prompts)]


def gather(
    row: int, prompt_tokens: int, steps: Sequence[Step], moments: Sequence[float]
) -> Generation:
    """One row's answer out of all steps."""
    last = next(i for i, step in enumerate(steps) if step.finished[row] is not None)
    reason = steps[last].finished[row]
    assert reason is not None
    groups = tuple(step.tokens[row] for step in steps[: last + 1])
    entries = steps[last].kv_entries[row]
    return Generation(
        text="".join(step.text[row] for step in steps[: last + 1]),
        tokens=tuple(token for group in groups for token in group),
        steps=groups,
        prompt_tokens=prompt_tokens,
        kv_entries=entries,
        kv_bytes=entries * steps[last].entry_bytes,
        seconds=moments[last],
        finish_reason=reason,
    )
