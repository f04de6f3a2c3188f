"""What every way to a drafter hands on to be saved, and the facts that several of them tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lightstride.commands.smashing.examples import Answers
from lightstride.errors import DataError
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import locate
from lightstride.results import Numbers, read_result
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.training.checkpoint import Progress


@dataclass(frozen=True)
class NewDrafter:
    """Grafts or a head, learned or taken, and what was found about them."""

    numbers: Numbers
    """For `result.json`."""
    text: str
    """For a person."""
    write: Callable[[Path, Mapping[str, object]], None]
    """Writes what is not there yet into a folder, with a record."""


def training_facts(progress: Progress, answers: Answers) -> Numbers:
    """Data and course of the training."""
    return {
        "answers": len(answers.learn),
        "answer_tokens": sum(len(each.answer_A) for each in answers.learn),
        "held_out_answers": len(answers.held_out),
        "steps": progress.step,
        "seconds": progress.seconds,
        "losses": progress.losses,
        "evaluations": progress.evaluations,
    }


def head_facts(head: Eagle3Head, base: PreTrainedModel) -> Numbers:
    """Sizes of a head, and the hash of its base."""
    return {
        "drafter": "eagle3",
        "base": fingerprint(base),
        "head_parameters": sum(each.numel() for each in head.parameters()),
        "draft_vocabulary": head.config.draft_vocab_size,
        "taps": list(head.config.taps),
        "positions": head.config.max_positions,
        "window": head.config.window,
    }


def start_provenance(source: str | None) -> Numbers | None:
    """Provenance of the grafts or head that a training began with, and of their own start."""
    path = None if source is None else Path(locate(source)) / "result.json"
    if path is None or not path.exists():
        return None
    before = read_result(path)
    told: dict[str, object] = {key: before[key] for key in ("command", "created", "data")}
    training = before["numbers"].get("training")
    if "head" in before["numbers"]:  # taken from a publisher, not trained
        return {**told, "head": before["numbers"]["head"]}
    if not isinstance(training, dict):
        raise DataError(f"{path} is not the result of a training; remove it")
    told["training"] = {key: value for key, value in training.items() if key != "losses"}
    if before["numbers"].get("started_from") is not None:
        told["started_from"] = before["numbers"]["started_from"]
    return told
