"""Answers with their scores, as training takes them, and which of them are held out.

Shapes: P tokens of a prompt, A tokens of an answer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightstride.errors import WorkError
from lightstride.smash.data.answers import Answer, read_answers
from lightstride.smash.data.scores import Scores, read_scores

SCORES = "scores"


@dataclass(frozen=True)
class Example:
    """A prompt, the base's answer to it, and what the base thought of every token."""

    id: str
    domain: str
    prompt_P: Tensor
    """int64."""
    answer_A: Tensor
    """int64."""
    entropy_A: Tensor
    """Entropy, in nats, of the distribution that predicts each token."""
    greedy_A: Tensor
    """int64: the token that the base would have chosen."""


def load_examples(folder: Path) -> list[Example]:
    """All examples of a work folder; WorkError where answers or scores are not whole."""
    answers, scores = read_answers(folder), read_scores(folder / SCORES)
    missing = sum(1 for each in answers if each.id not in scores)
    if missing:
        raise WorkError(f"{missing} answers in {folder} have no scores yet: run the scoring again")
    return [example(each, scores[each.id], folder) for each in answers]


def example(answer: Answer, scores: Scores, folder: Path) -> Example:
    """An answer and its scores as one."""
    if len(scores["entropy"]) != len(answer.answer):
        raise WorkError(
            f"the scores of answer {answer.id} in {folder} are of another answer: "
            f"delete the folder {folder / SCORES}"
        )
    return Example(
        id=answer.id,
        domain=answer.domain,
        prompt_P=torch.tensor(answer.prompt, dtype=torch.int64),
        answer_A=torch.tensor(answer.answer, dtype=torch.int64),
        entropy_A=scores["entropy"],
        greedy_A=scores["greedy"].long(),
    )


def split_held_out(
    examples: Sequence[Example], held_out: float
) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and a share that is held out; by their ids, so none ever moves."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for each in examples:
        digest = hashlib.sha256(each.id.encode()).digest()
        parts[int.from_bytes(digest[:8], "little") < held_out * 2**64].append(each)
    return parts
