"""Texts that want memory, made from a tokenizer and a seed alone: copies, and facts looked up.

Words are the tokenizer's own: tokens of letters with a space in front.  The user gives a list or
facts; the assistant says them again, exactly.  Nothing of a plan's loss on such text can hide
behind what is likely anyway.
"""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lightstride.errors import ModelError
from lightstride.memory.fitness import Text
from lightstride.models.chat_template import render_chat

ASKED = 12
"""Facts that are looked up in one text."""
FEWEST = 64
"""Words that a tokenizer must have."""
COPIES = (
    "Repeat this list of words exactly.\n\n{}",
    "Say these words again, in the same order:\n\n{}",
    "{}\n\nWrite the text above once more, word for word.",
)
FACTS = (
    ("The code of {0} is {1}.", "What are the codes of {}?"),
    ("{0} is in room {1}.", "Which rooms are these in: {}?"),
    ("{1} grams is the weight of {0}.", "Give the weights of {}."),
)


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words of one token, ascending; letters one by one where the tokenizer has too few."""
    found = set()
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token]))
        word = text.strip()
        if text != word and len(word) >= 3 and word.isascii() and word.isalpha():
            found.add(word)
    if len(found) >= FEWEST:
        return sorted(found)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [first + second for first in letters for second in letters]


def copies(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, rng: random.Random
) -> list[Text]:
    """Texts of about so many tokens: a list of words, then the same list again."""
    words, texts = words_of(tokenizer), []
    for index in range(count):
        said = fill(tokenizer, [rng.choice(words) for _ in range(length)], length // 2 - 24, " ")
        texts.append(exchange(tokenizer, "copy", COPIES[index % len(COPIES)].format(said), said))
    return texts


def lookups(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, rng: random.Random
) -> list[Text]:
    """Texts of about so many tokens: facts, and some of them asked for."""
    words, texts = words_of(tokenizer), []
    for index in range(count):
        fact, question = FACTS[index % len(FACTS)]
        names = rng.sample(words, min(len(words), length // 4))
        lines = [fact.format(name, rng.randint(100, 9999)) for name in names]
        given = fill(tokenizer, lines, length - 24 * ASKED, "\n").split("\n")
        asked = rng.sample(range(len(given)), min(ASKED, len(given)))
        wanted = ", ".join(names[place] for place in asked)
        prompt = "\n".join(given) + "\n\n" + question.format(wanted)
        answer = "\n".join(given[place] for place in asked)
        texts.append(exchange(tokenizer, "lookup", prompt, answer))
    return texts


def fill(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[str], length: int, between: str
) -> str:
    """As many of the parts as give at most so many tokens; at least one."""
    sizes = [len(tokenizer.encode(between + part, add_special_tokens=False)) for part in parts]
    used = number = 0
    while number < len(parts) and (number == 0 or used + sizes[number] <= length):
        used += sizes[number]
        number += 1
    return between.join(parts[:number])


def exchange(tokenizer: PreTrainedTokenizerBase, domain: str, prompt: str, answer: str) -> Text:
    """One question and one answer, by the model's chat template; the answer is judged."""
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template; a memory plan is searched on chats")
    text = render_chat(tokenizer, [{"role": "user", "content": prompt}])
    before = tokenizer.encode(text, add_special_tokens=False)
    after = tokenizer.encode(answer, add_special_tokens=False)
    return Text(domain, (*before, *after), len(before))
