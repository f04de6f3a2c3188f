"""A base with an EAGLE-3 head answers as the base does, alone and among others."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from helpers.agree import assert_same_greedy
from helpers.headed_toys import KINDS, deep_toy, random_head
from helpers.sessions import Request, alone, among_others, tokens_of
from helpers.smash_toys import PROMPTS
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError
from lightstride.generate import Limits, PlainDecoder, Settings, generate
from lightstride.generate.rows import Row
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.drafters import eagle3_tree
from lightstride.smash.drafters.eagle3_tree import Eagle3Tree
from lightstride.smash.drafters.guesses import Budget, Guesses


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_greedy_answers_are_the_bases(changes: dict[str, object]) -> None:
    base = deep_toy()
    asked = Settings(max_new_tokens=16, confidence=0.01, lookup=0, ignore_end_tokens=True)
    expected = generate(PlainDecoder(base, byte_tokenizer()), PROMPTS, asked)
    found = generate(HeadedDecoder(base, random_head(**changes), byte_tokenizer()), PROMPTS, asked)
    for prompt, one, other in zip(PROMPTS, found, expected, strict=True):
        assert_same_greedy(base, prompt, one.tokens, other.tokens)
    assert any(each.tokens_per_step > 1.1 for each in found)


@pytest.mark.parametrize("limits", [Limits(), Limits(chunk=3, together=7)])
def test_answers_are_the_same_alone_and_among_others(limits: Limits) -> None:
    base = deep_toy()
    decoder, plain = (
        HeadedDecoder(base, random_head(), byte_tokenizer()),
        PlainDecoder(base, byte_tokenizer()),
    )
    rng = random.Random(0)
    requests = [
        Request(
            tuple(rng.randrange(256) for _ in range(rng.choice((1, 2, 5, 9, 20)))),
            Settings(
                max_new_tokens=rng.randrange(1, 20),
                seed=number,
                confidence=0.01,
                temperature=rng.choice((0.0, 1.0)),
                mode=rng.choice(("lossless", "lossless", "ar")),
            ),
            cancel_after=rng.choice((None, None, 3)),
        )
        for number in range(14)
    ]
    together = among_others(decoder.session(limits), requests, 1)
    for number, request in enumerate(requests):
        one = Request(request.prompt, Settings(**{**vars(request.settings), "mode": "ar"}))
        expected = tokens_of(alone(plain.session(), one))
        found = tokens_of(together[number])
        assert found == expected[: len(found)]
        assert request.cancel_after is not None or len(found) == len(expected)


def test_drafts_from_kept_keys_are_those_of_a_head_that_reads_all_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every proposal of a decoding, against a drafter told of the row's whole past at once."""
    base, head = deep_toy(), random_head()
    tokenizer = byte_tokenizer()
    compared = 0
    propose = Eagle3Tree.propose

    def comparing(
        self: Eagle3Tree, rows: Sequence[Row], taps_BTD: Tensor, budgets: Sequence[Budget]
    ) -> list[Guesses]:
        nonlocal compared
        found = propose(self, rows, taps_BTD, budgets)
        for row, mine, budget in zip(rows, found, budgets, strict=True):
            tokens = [*row.prompt, *row.tokens][:-1]
            output = base(torch.tensor([tokens]), output_hidden_states=True)
            hidden = [output.hidden_states[tap][0] for tap in self.taps]
            fresh = Eagle3Tree(head, base.get_input_embeddings())
            fresh.accept([row], [eagle3_tree.Kept(tokens, torch.stack(hidden, 1))])
            (theirs,) = propose(fresh, [row], taps_BTD, [budget])
            assert {g.token for g in theirs.guesses if g.depth == 1} == {
                g.token for g in mine.guesses if g.depth == 1
            }
            pairs = zip(mine.guesses, theirs.guesses, strict=True)
            for one, other in pairs:
                assert one.probability == pytest.approx(other.probability, abs=1e-4)
                compared += 1
        return found

    monkeypatch.setattr(Eagle3Tree, "propose", comparing)
    asked = Settings(max_new_tokens=10, confidence=0.01, lookup=0, ignore_end_tokens=True, tree=8)
    generate(HeadedDecoder(base, head, tokenizer), PROMPTS[:2], asked)
    assert compared > 50


def test_modes_that_merge_are_refused() -> None:
    decoder = HeadedDecoder(deep_toy(), random_head(), byte_tokenizer())
    with pytest.raises(ConfigError, match="merges nothing"):
        decoder.session().add([1], Settings(mode="trust"), "a")
