"""The parts of a result that every kind of training tells alike."""

from collections.abc import Sequence
from pathlib import Path

from lightstride.errors import DataError
from lightstride.results import Numbers, read_result
from lightstride.smash.data.examples import Example
from lightstride.training.checkpoint import Progress


def training_facts(
    progress: Progress, learn: Sequence[Example], held_out: Sequence[Example]
) -> Numbers:
    """Data and course of the training."""
    return {
        "answers": len(learn),
        "answer_tokens": sum(len(each.answer_A) for each in learn),
        "held_out_answers": len(held_out),
        "steps": progress.step,
        "seconds": progress.seconds,
        "losses": progress.losses,
        "evaluations": progress.evaluations,
    }


def start_provenance(source: str | None) -> Numbers | None:
    """Provenance of the grafts or the head that this training began with."""
    path = Path(source or "") / "result.json"
    if not path.exists():
        return None
    before = read_result(path)
    told = {key: before[key] for key in ("command", "created", "data")}
    training = before["numbers"].get("training")
    if "head" in before["numbers"]:  # taken from a publisher, not trained
        return {**told, "head": before["numbers"]["head"]}
    if not isinstance(training, dict):
        raise DataError(f"{path} is not the result of a training; remove it")
    return {**told, "training": {key: value for key, value in training.items() if key != "losses"}}
