"""New heads: sizes, vocabulary, and what they begin with."""

import pytest
import torch

from helpers.answered_toys import answered
from helpers.headed_toys import deep_toy, deep_uneven
from helpers.toys import TINY, tiny_llama
from lightstride.errors import ConfigError
from lightstride.models.families.registry import adapter_for
from lightstride.smash.train.eagle3_start import learning_parts, new_head

EXAMPLES = answered(deep_toy(), 6)


def test_the_vocabulary_is_the_answers_and_the_rows_are_the_bases() -> None:
    base = deep_toy()
    head = new_head(base, EXAMPLES, draft_vocab=6, always=(257,), window=9)
    tokens = head.tokens_of_rows()
    counts = torch.bincount(torch.cat([each.answer_A for each in EXAMPLES]), minlength=260)
    assert 257 in tokens.tolist()
    others = {*counts.sort(descending=True, stable=True).indices[:5].tolist()}
    assert {*tokens.tolist()} - {257} == others
    assert torch.equal(head.lm_head.weight, base.get_output_embeddings().weight[tokens])
    assert head.config.window == 9
    assert head.config.taps == (2, 4, 5)


def test_a_whole_vocabulary_needs_no_offsets() -> None:
    head = new_head(deep_toy(), EXAMPLES, draft_vocab=10_000, always=())
    assert head.config.draft_vocab_size == 260
    assert not head.d2t_M.any()


def test_a_head_of_an_uneven_base_has_the_widest_blocks_sizes_and_weights() -> None:
    base = deep_uneven()
    config = (head := new_head(base, EXAMPLES, draft_vocab=6, always=())).config
    assert (config.num_heads, config.num_kv_heads, config.num_channels) == (4, 2, 48)
    block = adapter_for(base.config).blocks(base)[6]
    theirs = adapter_for(base.config).read(block, "attention")["query"]
    assert torch.equal(head.query.weight[:, 32:], theirs)
    assert 0 < head.query.weight[:, :32].abs().max() < 0.2


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3", "granite", "olmo2", "phi3"])
def test_heads_begin_on_every_family(family: str) -> None:
    base = TINY[family](num_layers=8)
    head = learning_parts(new_head(base, EXAMPLES, draft_vocab=6, always=()))
    learns = {name for name, each in head.named_parameters() if each.requires_grad}
    assert "fc.weight" in learns
    assert "lm_head.weight" not in learns
    assert all(torch.isfinite(each).all() for each in head.parameters())


def test_shallow_bases_are_refused() -> None:
    with pytest.raises(ConfigError, match="it needs 8"):
        new_head(tiny_llama(num_layers=4), EXAMPLES, draft_vocab=6, always=())
