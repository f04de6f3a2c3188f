"""The texts of a search of memory plans: what the model itself writes, copies and looked-up facts.

Conversations are written by the model alone, both sides, from the opening of a chat on; the
openings of code and sums begin the user's first turn.  They need no data, and their early turns
are old when the last ones are judged.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lightstride.data.sampled import openings
from lightstride.errors import ModelError
from lightstride.files import write_json
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.memory.documents import copies, lookups
from lightstride.memory.fitness import Text

FILE = "memory-texts.json"
OPENINGS = (
    ("chat", ""),
    ("code", "Write a Python function that"),
    ("maths", "A shop sells"),
    ("chat", ""),
    ("code", "Write a Python class for"),
    ("maths", "If a train"),
)
"""How conversations begin, and what they are then about."""
SHARE_GIVEN = 0.45
"""Share of a conversation that is not judged."""


def memory_texts(
    decoder: PlainDecoder,
    *,
    conversations: int,
    recalls: int,
    length: int,
    seed: int,
    folder: Path | None = None,
) -> list[Text]:
    """Conversations of about `length` tokens, and half as many copies and lookups as `recalls`.

    Domains take turns in their order.  With a folder the texts are kept there and read back.
    """
    path = None if folder is None else folder / FILE
    if path is not None and path.is_file():
        return [Text(**{**each, "tokens": tuple(each["tokens"])}) for each in read(path)]
    rng = random.Random(seed)
    tokenizer = decoder.tokenizer
    half = recalls // 2
    kinds = [
        converse(decoder, conversations, length, seed),
        copies(tokenizer, recalls - half, length, rng),
        lookups(tokenizer, half, length, rng),
    ]
    texts = mixed(kinds)
    if path is not None:
        write_json(path, {"texts": [asdict(text) for text in texts]})
    return texts


def read(path: Path) -> list[dict[str, object]]:
    """The texts of a file, as dictionaries."""
    found: list[dict[str, object]] = json.loads(path.read_text("utf-8"))["texts"]
    return found


def converse(decoder: PlainDecoder, count: int, length: int, seed: int) -> list[Text]:
    """Conversations that the model writes, both sides."""
    chat = chat_opening(decoder.tokenizer)
    begun = [OPENINGS[index % len(OPENINGS)] for index in range(count)]
    prompts = [
        [*chat, *decoder.tokenizer.encode(words, add_special_tokens=False)] for _, words in begun
    ]
    settings = Settings(
        max_new_tokens=length - max(map(len, prompts)),
        temperature=0.8,
        min_p=0.05,
        seed=seed,
        ignore_end_tokens=True,
    )
    answers = generate(decoder, prompts, settings)
    return [
        Text(domain, (*prompt, *answer.tokens), int(SHARE_GIVEN * length))
        for (domain, _), prompt, answer in zip(begun, prompts, answers, strict=True)
    ]


def chat_opening(tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """The chat template up to the user's words; ModelError where there is none."""
    for opening in openings(tokenizer):
        if opening.is_chat:
            return opening.tokens
    raise ModelError("the tokenizer has no chat template; a memory plan is searched on chats")


def mixed(kinds: Sequence[Sequence[Text]]) -> list[Text]:
    """All texts, the kinds in turn, those with more texts more often."""
    placed = [
        ((place + 0.5) / len(kind), number, text)
        for number, kind in enumerate(kinds)
        for place, text in enumerate(kind)
    ]
    return [text for _, _, text in sorted(placed, key=lambda each: each[:2])]
