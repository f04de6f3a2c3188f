"""Prompts with the answers that instruction data gives them.

Alpaca              output          Dolly       response
GSM8K               answer          HumanEval   canonical_solution
chat messages       the assistant's turn that comes last
self-instruct       the output of the first of its instances
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lightstride.data.prompts import (
    Fields,
    Prompt,
    messages,
    prompt_of_record,
    records_of,
    text_of,
)
from lightstride.data.records import as_mapping
from lightstride.errors import DataError

ANSWER_KEYS = ("output", "response", "answer", "canonical_solution")


@dataclass(frozen=True)
class Conversation:
    """A prompt and its answer."""

    prompt: Prompt
    answer: str


def read_conversations(source: str) -> list[Conversation]:
    """The conversations of a file or folder whose answer has text; DataError where none has."""
    found = list(conversations_of(source))
    if not found:
        raise DataError(
            f"{source} has no prompt with an answer: it must have a field of "
            f"{', '.join(ANSWER_KEYS)}, or messages that end with the assistant's"
        )
    return found


def conversations_of(source: str) -> Iterator[Conversation]:
    """The conversations of a file or folder, one after the other."""
    for where, record in records_of(source):
        prompt = prompt_of_record(record, where)
        if prompt is not None and not isinstance(record, str):
            answer = answer_of(as_mapping(record, where), where).strip()
            if answer:
                yield Conversation(prompt, answer)


def answer_of(fields: Fields, where: str) -> str:
    """The answer of one record, empty where it has none."""
    turns = fields.get("messages", fields.get("conversations"))
    if isinstance(turns, list) and turns:
        asked = len(messages(fields, where))
        after = as_mapping(turns[asked], where) if asked < len(turns) else {}
        return text_of(after, "content" if "content" in after else "value", where)
    instances = fields.get("instances")
    if isinstance(instances, list) and instances:
        fields = as_mapping(instances[0], where)
    return next((text for key in ANSWER_KEYS if (text := text_of(fields, key, where))), "")
