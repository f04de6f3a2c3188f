"""What a training keeps: its learning curve."""

import torch

from lightstride.training.checkpoint import KEPT_LOSSES, Progress


def test_the_learning_curve_keeps_even_spacing() -> None:
    progress = Progress()
    for step in range(1, 5001):
        progress.step = step
        progress.note({"loss": float(step)})
    steps = [step for step, _ in progress.losses]
    assert 100 < len(steps) <= 2 * KEPT_LOSSES
    assert steps[0] == 1
    assert set(torch.tensor(steps).diff().tolist()) == {steps[1] - steps[0]}
    assert steps[-1] > 4900
