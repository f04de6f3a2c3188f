"""Can a model say the last word of a passage?  Passages are made from any text.

As in LAMBADA (Paperno et al., 2016) the last word can be known from the passage alone: here it is
a long word that has stood in the passage before.  A short document of one line, or one that breaks
off after a word, as all do in OpenAI's file of LAMBADA, is a passage: its last word is asked.
"""

import re
from collections.abc import Iterator, Sequence

from lightstride.errors import DataError
from lightstride.evaluate.block_reader import BlockReader, weights_of
from lightstride.evaluate.loglikelihood import score
from lightstride.generate import Decoder

WORDS = 60
"""Words of a passage before the last."""
LONG = 6
"""Letters of a word worth asking for."""
PASSAGE_CHARACTERS = 1500
"""A longer document is no passage of its own."""
BREAKS_OFF = re.compile(r"\s[\w'’-]+$")
WORD = re.compile(rf"[A-Za-z]{{{LONG},}}")


def passages(documents: Sequence[str], limit: int) -> list[tuple[str, str]]:
    """Contexts with their last words, at most one for each stretch of text; DataError if none."""
    found: list[tuple[str, str]] = []
    for document in documents:
        text = document.strip()
        if is_passage(text):
            *context, word = text.rsplit(maxsplit=1)
            found += [(part, f" {word}") for part in context]
        else:
            found += repeated_words(text.split())
        if len(found) >= limit:
            return found[:limit]
    if not found:
        raise DataError("the text has no passage whose last word stood in it before")
    return found


def is_passage(text: str) -> bool:
    """Whether a whole document is one passage, whose last word can be asked."""
    short = len(text) <= PASSAGE_CHARACTERS
    return short and ("\n" not in text or BREAKS_OFF.search(text) is not None)


def repeated_words(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Passages of a longer text that end in a long word which they contain."""
    end = WORDS
    while end < len(words):
        context = words[end - WORDS : end]
        if WORD.fullmatch(words[end]) and words[end] in context:
            yield " ".join(context), f" {words[end]}"
            end += WORDS
        end += 1


def last_word_accuracy(
    reader: Decoder | BlockReader, asked: Sequence[tuple[str, str]], max_length: int
) -> list[bool]:
    """For every passage, whether each token of its last word is the model's likeliest."""
    pairs = []
    for context, word in asked:
        tokens = reader.tokenizer.encode(context, add_special_tokens=False)
        whole = reader.tokenizer.encode(context + word, add_special_tokens=False)
        kept = len(tokens) if whole[: len(tokens)] == tokens else len(tokens) - 1
        pairs.append((whole[: max(1, kept)], whole[max(1, kept) :]))
    model, spill = weights_of(reader)
    scores = score(model, pairs, max_length=max_length, spill=spill, title="last words")
    return [one.is_greedy for one in scores]
