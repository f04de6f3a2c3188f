"""Prompts for a chat model: whatever instruction data looks like, to messages.

    Alpaca, Dolly       instruction with input or context
    chat messages       messages (role, content) or conversations (from, value)
    GSM8K               question
    HumanEval           prompt with task_id: the user asks to complete the function
    MT-Bench            turns: the first
    self-instruct       instruction, and the input of the first of its instances
    plain               prompt or text; Alpaca's frame around a prompt is taken off

Answers in the data are left out: a model is trained on its own.  A prompt's id is the hash of its
messages, so the same prompt of two files is one prompt, and no order or selection changes it.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightstride.data.records import (
    DATASET_ID,
    RECORD_FILES,
    RECORD_SUFFIXES,
    Located,
    as_mapping,
    file_records,
    files_in,
    hub_records,
    suffix_of,
)
from lightstride.errors import DataError

Fields = Mapping[str, object]
PROMPT_SOURCES = f"self, or {RECORD_FILES}"
ID_LENGTH = 16
FRAME = re.compile(r"### Instruction:\n(.*?)\n+(?:### Input:\n(.*?)\n+)?### Response:", re.DOTALL)
"""Alpaca's frame around an instruction."""
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
COMPLETE = "Complete this Python function.\n\n```python\n{}\n```"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the user's last turn."""

    id: str
    messages: tuple[Message, ...]
    domain: str = ""


def make_prompt(messages: Sequence[Message], domain: str = "") -> Prompt:
    """The prompt of these messages, with its id."""
    text = json.dumps([[message.role, message.content] for message in messages])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(digest[:ID_LENGTH], tuple(messages), domain)


def read_prompts(
    source: str | Sequence[str], *, limit: int | None = None, seed: int = 0
) -> list[Prompt]:
    """The distinct prompts of one or several sources (several: in a sequence, or with commas).

    With a limit, so many of them in an order drawn by the seed; of a hub data set then no more
    than that are read.  Records without text are passed over; DataError where no prompt is left.
    """
    sources = source.split(",") if isinstance(source, str) else list(source)
    found: dict[str, Prompt] = {}
    for name in sources:
        endless = not Path(name).exists()
        before = len(found)
        for where, record in records_of(name):
            prompt = prompt_of_record(record, where)
            if prompt is not None:
                found.setdefault(prompt.id, prompt)
            if endless and limit is not None and len(found) - before >= limit:
                break
        if not found:
            raise DataError(f"there is no prompt in {name}: its records have no text")
    prompts = list(found.values())
    if limit is None:
        return prompts
    random.Random(seed).shuffle(prompts)
    return prompts[:limit]


def records_of(source: str) -> Iterator[Located]:
    """The records of a file, a folder, or a hub data set."""
    path = Path(source)
    if source == "self":
        raise DataError("self is written by a model; it is no file that can be read here")
    if path.is_dir():
        files = files_in(path, RECORD_SUFFIXES)
        if not files:
            raise DataError(f"{source} is not {RECORD_FILES}")
        for file in files:
            yield from file_records(file, [*RECORD_READERS])
    elif path.exists():
        if suffix_of(path) not in RECORD_SUFFIXES:
            raise DataError(f"{source} is not {RECORD_FILES}")
        yield from file_records(path, [*RECORD_READERS])
    elif DATASET_ID.fullmatch(source) and not path.suffix:
        yield from hub_records(source, PROMPT_SOURCES)
    else:
        raise DataError(
            f"there is no prompt source {source!r}: it must be {PROMPT_SOURCES}, or a hub id"
        )


def prompt_of_record(record: object, where: str) -> Prompt | None:
    """The prompt of one record, None if it has no text; DataError for an unknown layout."""
    fields = {"text": record} if isinstance(record, str) else as_mapping(record, where)
    for key, read in RECORD_READERS.items():
        if key in fields:
            messages = [
                Message(message.role, message.content.strip()) for message in read(fields, where)
            ]
            if not messages or not messages[-1].content:
                return None
            return make_prompt(messages, domain_of(fields))
    raise DataError(
        f"{where} has none of the fields of a prompt, {', '.join(RECORD_READERS)}: "
        f"it has {', '.join(map(str, fields))}"
    )


def domain_of(fields: Fields) -> str:
    """The prompt's domain: the record's own, or code, maths or chat."""
    if isinstance(given := fields.get("domain"), str):
        return given
    if "task_id" in fields and "prompt" in fields:
        return "code"
    return "maths" if "question" in fields and "####" in str(fields.get("answer")) else "chat"


def text_of(fields: Fields, key: str, where: str) -> str:
    """A field's text, empty where there is none; DataError for anything but text."""
    text = fields.get(key)
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where} has no text as {key}: {str(text)[:40]!r}")
    return text or ""


def instruction(fields: Fields, where: str) -> list[Message]:
    """Alpaca's, Dolly's and self-instruct's: what to do, and on what."""
    instances = fields.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else {}
    given = [
        text_of(fields, "input", where),
        text_of(fields, "context", where),
        text_of(as_mapping(first, where), "input", where),
    ]
    parts = [text_of(fields, "instruction", where), *given]
    text = "\n\n".join(part for part in parts if part.strip())
    return [Message("user", text if parts[0].strip() else "")]


def messages(fields: Fields, where: str) -> list[Message]:
    """A conversation up to the user's last turn; what is answered after it is left out."""
    key = "messages" if "messages" in fields else "conversations"
    turns = fields[key]
    if turns is not None and not isinstance(turns, list):
        raise DataError(f"{where} has no list of messages as {key}: {str(turns)[:40]!r}")
    found = []
    for turn in turns or []:
        given = as_mapping(turn, where)
        role = text_of(given, "role" if "role" in given else "from", where)
        content = text_of(given, "content" if "content" in given else "value", where)
        found.append(Message(ROLES.get(role, role), content))
    while found and found[-1].role != "user":
        found.pop()
    return found


def first_turn(fields: Fields, where: str) -> list[Message]:
    """MT-Bench's: the first of the user's turns."""
    turns = fields["turns"]
    if not isinstance(turns, list):
        raise DataError(f"{where} has no list as turns: {str(turns)[:40]!r}")
    return [Message("user", text_of({"turns": turn}, "turns", where)) for turn in turns[:1]]


def plain(key: str) -> Callable[[Fields, str], list[Message]]:
    """The reader of a field that is the user's turn."""

    def read(fields: Fields, where: str) -> list[Message]:
        text = text_of(fields, key, where)
        if "task_id" in fields and text.strip():
            return [Message("user", COMPLETE.format(text.strip()))]
        framed = FRAME.search(text)
        if framed is not None:
            text = "\n\n".join(part for part in framed.groups() if part)
        return [Message("user", text)]

    return read


RECORD_READERS: Mapping[str, Callable[[Fields, str], list[Message]]] = {
    "messages": messages,
    "conversations": messages,
    "turns": first_turn,
    "instruction": instruction,
    "question": plain("question"),
    "prompt": plain("prompt"),
    "text": plain("text"),
}
"""How to read a record, by the first of these fields that it has."""
