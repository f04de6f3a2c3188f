"""Short trainings of a toy on its own answers."""

from pathlib import Path

from helpers.answered_toys import answered, sharp_llama
from lightstride.smash.train.loop import TrainSettings, train
from lightstride.smash.train.loss import LoweredSmashLoss
from lightstride.training.checkpoint import Progress, TrainingFolder

EXAMPLES = answered(sharp_llama(), 12)


def nothing() -> dict[str, object]:
    return {}


def run(folder: Path, learner: LoweredSmashLoss, **changes: object) -> Progress:
    settings: dict[str, object] = {
        "steps": 6,
        "row_tokens": 40,
        "rows": 1,
        "accumulate": 2,
        "own_cuts_from": 0.3,
        "save_minutes": 100.0,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    training = TrainSettings(**settings)  # type: ignore[arg-type]
    return train(learner, EXAMPLES, training, TrainingFolder(folder), nothing)
