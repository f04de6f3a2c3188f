"""Instructions that a program checks."""

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.evaluate.instructions import DEMANDS, followed, make_instructions
from lightstride.generate import PlainDecoder

ANSWERS = {
    "word": ("Orange window, quiet: seven always paper travel friend light.", "Nothing."),
    "forbidden word": ("Nothing here.", "The end of a day is near and long."),
    "at most": ("Few words.", "many " * 61),
    "at least": ("many " * 70, "Few words."),
    "lower case": ("all lower.", "One capital."),
    "capitals": ("ALL, 2 OF THEM!", "ALMOSt"),
    "no commas": ("none", "one, two"),
    "quotation": ('"All of it."', '"Not" all'),
    "title": ("<<Rain>>\nIt falls.", "Rain: <<no>>"),
    "postscript": ("Dear you.\n\nP.S. I forgot.", "Dear you. PS: no."),
    "JSON": ('```json\n{"a": [1]}\n```', '{"a": 1} it is'),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_demands_are_checked(kind: str) -> None:
    right, wrong = ANSWERS[kind]
    for each in make_instructions(200):
        if each.kind == kind:
            assert each.is_met(right)
            assert not each.is_met(wrong)


def test_bullets_are_counted() -> None:
    counts = {"two": 2, "three": 3, "four": 4}
    asked = [each for each in make_instructions(200) if each.kind == "bullet points"]
    assert {name for name in counts for each in asked if f" {name} " in each.prompt} == set(counts)
    for each in asked:
        met = [each.is_met("Here:\n" + "* one\n" * count) for count in range(6)]
        assert met.count(True) == 1
        name = next(name for name in counts if f" {name} " in each.prompt)
        assert met[counts[name]]


def test_the_end_is_the_end() -> None:
    for each in make_instructions(200):
        if each.kind == "end":
            end = each.prompt.split('"')[1]
            assert each.is_met(f"Well. {end}\n")
            assert not each.is_met(f"{end} Well.")


def test_instructions_are_different_and_of_all_kinds() -> None:
    asked = make_instructions(130, seed=3)
    assert len({each.prompt for each in asked}) == 130
    assert {each.kind for each in asked} == set(DEMANDS)
    again = make_instructions(130, seed=3)
    assert [each.prompt for each in again] == [each.prompt for each in asked]
    assert [each.prompt for each in make_instructions(130)] != [each.prompt for each in asked]


def test_shares_are_of_all_answers() -> None:
    found = followed(PlainDecoder(tiny_llama(), byte_tokenizer()), make_instructions(3))
    assert found["instructions"] == 3
    assert 0 <= found["followed"] <= 1
    assert 0 <= found["error"] <= 0.5
    assert found["by_kind"]["JSON"] is None
