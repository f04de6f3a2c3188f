"""Healing: what a cut model keeps learns to say what the dense model says.

Optional, after the cut.  The blocks' weights are trained on the calibration text to the dense
model's own next-token distributions, by the loop of `recover/`: `lightstride recover` with the
text that is there anyway, and a number of passes in the place of minutes.

Related: knowledge distillation (Hinton et al., 2015); Minitron (arXiv 2407.14679) heals pruned
models so, on billions of tokens.  Here one pass over the calibration text already helps.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from lightstride.models.families.adapter import Adapter
from lightstride.recover.loop import Recovery, Rows, recover
from lightstride.training.checkpoint import Progress


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How long and how fast to learn."""

    passes: int
    """Passes over the text."""
    learning_rate: float = 1e-4
    """Largest learning rate."""
    step_tokens: int = 512
    """Tokens of a step, over all processes."""
    save_minutes: float = 2.0
    """Time between checkpoints."""
    seed: int = 0
    """Seed of the order of the windows."""


def heal(
    smaller: PreTrainedModel,
    dense: PreTrainedModel,
    adapter: Adapter,
    tokens_NL: Tensor,
    healing: Healing,
    folder: Path,
    *,
    title: str = "healing",
    progress: bool = False,
) -> Progress:
    """Train the blocks of `smaller`, in place, to answer like `dense`; how it went.

    Goes on from the checkpoint in `folder`, to the same weights.  Windows are (N, L).
    """
    recovery = Recovery(
        passes=healing.passes,
        learning_rate=healing.learning_rate,
        step_tokens=healing.step_tokens,
        save_minutes=healing.save_minutes,
        seed=healing.seed,
    )
    rows = Rows.alike(tokens_NL)
    return recover(smaller, dense, adapter, rows, recovery, folder, title=title, progress=progress)
