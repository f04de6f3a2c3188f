"""The texts of a search of memory plans: what the model itself writes, code, copies, lookups.

Conversations are written by the model alone, both sides, from the opening of a chat on; the
opening of a sum begins the user's first turn.  Their early turns are old when the last ones are
judged.  Code is the standard library's, which every Python has, as if the model had written it.
"""

import calendar
import fractions
import heapq
import inspect
import random
import shlex
import statistics
import string
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedTokenizerBase

from lightstride.errors import WorkError
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.memory.documents import copies, exchange, lookups
from lightstride.memory.fitness import Text
from lightstride.smash.data.self_prompts import user_opening

TEXTS_FILE = "memory-texts.json"
OPENINGS = (("chat", ""), ("maths", "A shop sells"), ("chat", ""), ("maths", "If a train"))
"""What conversations are about, and how their first turn begins."""
MODULES: tuple[ModuleType, ...] = (heapq, textwrap, shlex, statistics, string, fractions, calendar)
"""Modules whose source is code to be written."""
COPY_LENGTH = 1.3
"""Tokens of a text that is copied and its copy, over those of other texts: a word and its copy are
to be farther apart than the largest window."""
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
    """Conversations of about `length` tokens, half as many texts of code, and `recalls` copies and
    lookups.

    Kinds take turns in their order.  With a folder the texts are kept there and read back.
    """
    path = None if folder is None else folder / TEXTS_FILE
    if path is not None and path.is_file():
        found = read_sealed(path, dict[str, list[Text]], WorkError)
        return found.get("texts", [])
    rng = random.Random(seed)
    tokenizer = decoder.tokenizer
    half = recalls // 2
    kinds = [
        converse(decoder, conversations, length, seed),
        code(tokenizer, conversations // 2, length, seed),
        copies(tokenizer, recalls - half, int(COPY_LENGTH * length), rng),
        lookups(tokenizer, half, length, rng),
    ]
    texts = mixed(kinds)
    if path is not None:
        write_sealed(path, {"texts": [text.as_dict() for text in texts]})
    return texts


def code(tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int) -> list[Text]:
    """Source code as answers; other seeds take other modules."""
    texts = []
    for index in range(count):
        module = MODULES[(seed * count + index) % len(MODULES)]
        source = f"```python\n{inspect.getsource(module)}"
        whole = exchange(tokenizer, "code", f"Write the Python module {module.__name__}.", source)
        texts.append(Text("code", whole.tokens[:length], int(SHARE_GIVEN * length)))
    return texts


def converse(decoder: PlainDecoder, count: int, length: int, seed: int) -> list[Text]:
    """Conversations that the model writes, both sides."""
    chat = user_opening(decoder.tokenizer).tokens
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


def mixed(kinds: Sequence[Sequence[Text]]) -> list[Text]:
    """All texts, the kinds in turn, those with more texts more often."""
    placed = [
        ((place + 0.5) / len(kind), number, text)
        for number, kind in enumerate(kinds)
        for place, text in enumerate(kind)
    ]
    return [text for _, _, text in sorted(placed, key=lambda each: each[:2])]
