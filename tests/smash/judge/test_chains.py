"""Chains that are observed are those that the decoder takes."""

from pathlib import Path

from helpers.agree import assert_same_greedy
from helpers.answered_toys import answered, example
from helpers.head_runs import head_learner, train_head_here
from helpers.headed_toys import deep_toy
from helpers.toys import byte_tokenizer
from lightstride.generate import Settings, generate
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.judge.chains import collect_chains, summarize_chains

EXAMPLES = answered(deep_toy(), 10)


def test_observed_steps_are_those_of_the_decoder(tmp_path: Path) -> None:
    learner = head_learner(EXAMPLES)
    train_head_here(tmp_path, learner, EXAMPLES, steps=30, learning_rate=1e-2, row_tokens=200)
    head, reader = learner.inner.head.eval(), learner.inner.reader
    base = reader.base
    asked = Settings(max_new_tokens=12, confidence=1e-6, lookup=0, tree=64, ignore_end_tokens=True)
    decoder = HeadedDecoder(base, head, byte_tokenizer())
    chosen = [e for e in EXAMPLES if len(e.answer_A) >= 12][:4]
    cut = [example(e.id, e.prompt_P.tolist(), e.answer_A[:12].tolist(), base) for e in chosen]
    steps = 0
    for each in cut:
        (found,) = generate(decoder, [each.prompt_P.tolist()], asked)
        assert_same_greedy(base, each.prompt_P.tolist(), found.tokens, each.answer_A.tolist())
        steps += found.macro_steps
    drafts = collect_chains(head, reader, cut, row_tokens=64, num_steps=7)
    numbers = summarize_chains(drafts)
    assert numbers["tokens"] == 48
    seen = numbers["lossless"]
    assert isinstance(seen, float)
    assert seen > 1.2
    # The decoder's first step says one token alone; its trees hold the chain that is observed.
    assert steps <= 12 * len(cut) / seen + len(cut)
