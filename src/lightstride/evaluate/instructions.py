"""Does an answer do as it was told?  Instructions that a program can check, made from a seed.

As in IFEval (Zhou et al., 2023, arXiv:2311.07911): a task that anybody can do in words, and one
demand on the form of the answer.  The share that is met is told with its standard error.
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightstride.evaluate.loops import ANSWER_TOKENS, ROWS_AT_ONCE
from lightstride.generate import Decoder, Settings, generate
from lightstride.generate.chat_template import chat_tokens

TASKS = (
    "Write a short text about {}.",
    "Explain to a child what you know about {}.",
    "Give advice to somebody who wants to learn about {}.",
    "Write a letter to a friend about {}.",
    "Describe {} in your own words.",
    "Tell a story in which {} matters.",
)
TOPICS = (
    "lighthouses", "bread", "the moon", "bicycles", "winter", "bees", "chess", "rivers", "music",
    "trains", "gardens", "the sea", "libraries", "volcanoes", "tea", "bridges", "dogs", "maps",
    "clocks", "football", "rain", "mountains", "painting", "schools",
)  # fmt: skip
KEYWORDS = ("orange", "window", "quiet", "seven", "always", "paper", "travel", "friend", "light")
NUMBERS = {"two": 2, "three": 3, "four": 4}
BULLET = re.compile(r"^\s*[*-] \S", re.MULTILINE)


@dataclass(frozen=True)
class Demand:
    """A demand on an answer's form."""

    text: str
    is_met: Callable[[str], bool]


@dataclass(frozen=True)
class Instruction:
    """What is asked, and how the answer is checked."""

    kind: str
    prompt: str
    is_met: Callable[[str], bool]


def word_demand(rng: random.Random) -> Demand:
    """A word that must stand in the answer."""
    word = rng.choice(KEYWORDS)
    return Demand(f'Use the word "{word}".', lambda answer: has_word(answer, word))


def forbidden_demand(rng: random.Random) -> Demand:
    """A word that must not."""
    word = rng.choice(("the", "and", "is", "of"))
    return Demand(f'Do not use the word "{word}".', lambda answer: not has_word(answer, word))


def bullets_demand(rng: random.Random) -> Demand:
    """A number of bullet points."""
    name, count = rng.choice(list(NUMBERS.items()))
    text = f"Answer with exactly {name} bullet points, each beginning with * and a blank."
    return Demand(text, lambda answer: len(BULLET.findall(answer)) == count)


def short_demand(rng: random.Random) -> Demand:
    """A number of words that is not exceeded."""
    most = rng.choice((20, 40, 60))
    return Demand(f"Use at most {most} words.", lambda answer: len(answer.split()) <= most)


def long_demand(rng: random.Random) -> Demand:
    """A number of words that is reached."""
    least = rng.choice((30, 50, 70))
    return Demand(f"Use at least {least} words.", lambda answer: len(answer.split()) >= least)


def end_demand(rng: random.Random) -> Demand:
    """A sentence at the end."""
    end = rng.choice(("Is there anything else?", "That is all.", "Thank you for asking."))
    text = f'End with exactly this sentence and nothing after it: "{end}"'
    return Demand(text, lambda answer: answer.strip(' \n"').endswith(end))


DEMANDS: Mapping[str, Callable[[random.Random], Demand]] = {
    "word": word_demand,
    "forbidden word": forbidden_demand,
    "bullet points": bullets_demand,
    "at most": short_demand,
    "at least": long_demand,
    "end": end_demand,
    "lower case": lambda _: Demand("Write in lower case letters only.", str.islower),
    "capitals": lambda _: Demand("WRITE IN CAPITAL LETTERS ONLY.", str.isupper),
    "no commas": lambda _: Demand("Do not use any commas.", lambda answer: "," not in answer),
    "quotation": lambda _: Demand("Put the whole answer in double quotation marks.", is_quoted),
    "title": lambda _: Demand("Begin with a title in <<double angle brackets>>.", has_title),
    "postscript": lambda _: Demand("At the end add a postscript that begins with P.S.", has_ps),
    "JSON": lambda _: Demand("Answer in valid JSON and nothing else.", is_json),
}
"""Demands by kind."""


def has_word(answer: str, word: str) -> bool:
    """Whether a word stands in an answer."""
    return re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None


def is_quoted(answer: str) -> bool:
    """Whether an answer is in quotation marks as a whole."""
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def has_title(answer: str) -> bool:
    """Whether an answer begins with a title."""
    return re.match(r"\s*<<[^>\n]+>>", answer) is not None


def has_ps(answer: str) -> bool:
    """Whether a line of an answer is a postscript."""
    return re.search(r"^\s*P\.\s?S\.", answer, re.MULTILINE) is not None


def is_json(answer: str) -> bool:
    """Whether an answer is an object or a list in JSON, bare or in a code block."""
    text = re.sub(r"^```(?:json)?\n(.*)\n```$", r"\1", answer.strip(), flags=re.DOTALL)
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def make_instructions(count: int, seed: int = 0) -> list[Instruction]:
    """So many different ones, all kinds as often."""
    rng = random.Random(f"instructions {seed}")
    kinds = list(DEMANDS)
    found: dict[str, Instruction] = {}
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        demand = DEMANDS[kind](rng)
        prompt = f"{rng.choice(TASKS).format(rng.choice(TOPICS))} {demand.text}"
        found.setdefault(prompt, Instruction(kind, prompt, demand.is_met))
    return list(found.values())


def followed(decoder: Decoder, instructions: Sequence[Instruction]) -> dict[str, object]:
    """The share of instructions that greedy answers follow, its standard error, and by kind."""
    settings = Settings(max_new_tokens=ANSWER_TOKENS)
    met: list[bool] = []
    for start in range(0, len(instructions), ROWS_AT_ONCE):
        asked = instructions[start : start + ROWS_AT_ONCE]
        messages = [[{"role": "user", "content": each.prompt}] for each in asked]
        prompts = [chat_tokens(decoder.tokenizer, each) for each in messages]
        answers = generate(decoder, prompts, settings)
        met += [each.is_met(answer.text) for each, answer in zip(asked, answers, strict=True)]
    share = sum(met) / len(met)
    return {
        "followed": share,
        "error": math.sqrt(share * (1 - share) / len(met)),
        "instructions": len(met),
        "by_kind": {kind: share_of(kind, instructions, met) for kind in DEMANDS},
    }


def share_of(kind: str, instructions: Sequence[Instruction], met: Sequence[bool]) -> float | None:
    """The share of one kind; None where there is none of it."""
    own = [done for each, done in zip(instructions, met, strict=True) if each.kind == kind]
    return sum(own) / len(own) if own else None
