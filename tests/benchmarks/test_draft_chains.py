"""benchmarks/draft_chains.py on a toy: counts as an engine's, conversations of a length."""

import sys
from pathlib import Path

import pytest

from helpers.answered_toys import answered
from helpers.headed_toys import deep_toy, random_head
from helpers.toys import byte_tokenizer
from lightstride.generate import PlainDecoder
from lightstride.smash.model.reading import BaseReader

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from draft_chains import Counts, at_contexts, conversation, count_chains, runs_of, walk

TURNS = [("How?", "So."), ("And why?", "Because.")]


@pytest.mark.parametrize(
    ("runs", "most", "expected"),
    [
        ([0] * 6, 3, Counts(5, 3 + 3 + 2 + 1, 0)),
        ([3, 3, 2, 1, 0, 0, 0], 3, Counts(3, 3 + 1, 3)),
        ([5, 4, 3, 2, 1, 0], 2, Counts(2, 2 + 1, 2 + 1)),
        ([1, 0], 3, Counts(1, 0, 0)),
    ],
)
def test_forwards_go_on_behind_what_was_right(runs: list[int], most: int, expected: Counts) -> None:
    found = walk(runs, most)
    assert found == expected
    assert found.forwards + found.accepted == len(runs) - 1


def test_runs_are_those_of_chains_drafted_one_by_one() -> None:
    base, head = deep_toy(), random_head()
    reader = BaseReader(base, head.config.taps)
    (one,) = answered(base, 1)
    prompt, answer = one.prompt_P.tolist(), one.answer_A.tolist()
    runs = runs_of(head, reader, prompt, answer, 3)
    assert len(runs) == len(answer)
    assert all(run <= min(3, len(answer) - 1 - at) for at, run in enumerate(runs))
    twice = count_chains(head, reader, [prompt, prompt], [answer, answer], 3)
    assert twice == walk(runs, 3) + walk(runs, 3)


def test_conversations_grow_up_to_the_length() -> None:
    decoder = PlainDecoder(deep_toy(), byte_tokenizer())
    short = conversation(decoder, TURNS, "What now?", 0)
    long = conversation(decoder, TURNS, "What now?", 200)
    assert len(short) < len(long) <= 200


def test_contexts_ask_the_first_questions() -> None:
    decoder = PlainDecoder(deep_toy(), byte_tokenizer())
    found = at_contexts(decoder, random_head(), TURNS, [40, 90], asked=1, most=3, new_tokens=8)
    assert set(found) == {"40", "90"}
    assert found["40"]["prompt_tokens"] < found["90"]["prompt_tokens"] <= 90
    assert found["90"]["drafts"] > 0
