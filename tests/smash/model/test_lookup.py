"""Lookup drafts against a search from scratch."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lightstride.smash.model.lookup import MAX_BRANCHES, Branch, Lookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def searched(tokens: list[int], most: int, longest: int) -> list[int]:
    """The same proposal, found by looking at every place."""
    for size in range(longest, 0, -1):
        if size > len(tokens):
            continue
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                text = list(tokens)
                while len(text) < len(tokens) + most:
                    text.append(text[end + len(text) - len(tokens)])
                return text[len(tokens) :]
    return []


@settings(deadline=None)
@given(tokens=TOKENS, cut=st.integers(0, 40), most=st.integers(1, 6))
def test_proposals_are_what_followed_last_time(tokens: list[int], cut: int, most: int) -> None:
    lookup = Lookup(tokens[:cut], longest=3)
    lookup.extend(tokens[cut:])
    assert lookup.prediction(most).tokens == searched(tokens, most, 3)


@settings(deadline=None)
@given(tokens=TOKENS, cut=st.integers(0, 40))
def test_branches_are_the_longest_runs_with_different_tokens_behind(
    tokens: list[int], cut: int
) -> None:
    lookup = Lookup(tokens[:cut], longest=3)
    lookup.extend(tokens[cut:])
    found: dict[int, Branch] = {}
    for size in (3, 2, 1):
        for place in range(len(tokens) - 1, size - 1, -1):
            if size <= len(tokens) and tokens[place - size : place] == tokens[-size:]:
                found.setdefault(tokens[place], Branch(place, size))
    assert lookup.branches() == list(found.values())[:MAX_BRANCHES]


def test_a_loop_goes_on() -> None:
    assert Lookup([7, 1, 2, 3, 1, 2, 3]).prediction(5).tokens == [1, 2, 3, 1, 2]


def test_what_is_new_proposes_nothing() -> None:
    assert Lookup([1, 2, 3, 4]).prediction(3).tokens == []
    assert Lookup().prediction(3).tokens == []
