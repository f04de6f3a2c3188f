"""llama.cpp drafts with our GGUF of a head as our own chains do, and answers as the base."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("xllamacpp")

from helpers.agree import assert_same_greedy
from helpers.answered_toys import answered, example
from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.engine import Engine
from helpers.head_runs import head_learner, train_head_here
from helpers.headed_toys import deep_toy, deep_uneven
from helpers.toys import tiny_qwen2
from lightstride.errors import ExportError
from lightstride.export.gguf.head import refuse_base_for_head, write_head_gguf
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for
from lightstride.smash.judge.chains import collect_chains
from lightstride.smash.judge.held_out import lossless_tokens_per_step
from lightstride.smash.model.eagle3_files import flat_config, stored_tensors

EXAMPLES = answered(deep_toy(), 10)
LENGTH = 24


@torch.no_grad()
def greedy(base, prompt: list[int]) -> list[int]:
    tokens = torch.tensor([prompt])
    for _ in range(LENGTH):
        tokens = torch.cat([tokens, base(tokens).logits[0, -1].argmax().view(1, 1)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def test_llama_cpp_drafts_with_a_head_as_we_do(tmp_path: Path) -> None:
    learner = head_learner(EXAMPLES)
    train_head_here(tmp_path / "t", learner, EXAMPLES, steps=40, learning_rate=1e-2, row_tokens=200)
    base, head = learner.inner.reader.base, learner.inner.head.eval().requires_grad_(False)
    tokenizer, geometry = ascii_tokenizer(), adapter_for(base.config).geometry(base.config)
    files = tmp_path / "base.gguf", tmp_path / "head.gguf"
    write_gguf(
        ModelWeights(base), base.config, geometry, tokenizer, files[0], dtype="f32", name="base"
    )
    written = write_head_gguf(
        flat_config(head.config),
        {**stored_tensors(head, "flat"), "d2t": head.tokens_of_rows()},
        head.config.taps,
        base.config,
        tokenizer,
        files[1],
        dtype="f32",
        name="head",
    )
    assert (written.architecture, written.fallbacks) == ("eagle3", ())
    engine = Engine(files[0], head=files[1])
    accepted, cut = 0, []
    for each in EXAMPLES:
        prompt = each.prompt_P.tolist()
        found = engine.complete(prompt, LENGTH)
        expected = greedy(base, prompt)
        assert_same_greedy(base, prompt, found["tokens"], expected, tie=0.05)
        accepted += found["timings"]["draft_n_accepted"]
        cut.append(example(each.id, prompt, expected, base))
    seen = lossless_tokens_per_step(
        collect_chains(head, learner.inner.reader, cut, row_tokens=200, num_steps=3)
    )
    tokens = LENGTH * len(cut)
    assert seen > 1.5
    assert tokens / (tokens - accepted) == pytest.approx(seen, rel=0.08)


@pytest.mark.parametrize(
    ("base", "name"), [(deep_uneven, "deci"), (lambda: tiny_qwen2(num_layers=8), "qwen2")]
)
def test_bases_that_give_no_states_are_refused_by_name(base, name: str) -> None:
    config = base().config
    with pytest.raises(ExportError, match=f"{name}.*--to speculators"):
        refuse_base_for_head(config, adapter_for(config).geometry(config))
