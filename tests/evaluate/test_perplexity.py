"""Perplexity: sliced = at once, batched = one by one, strides score what they should."""

from math import exp
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.data.windows import strided_windows
from lightstride.errors import ModelError
from lightstride.evaluate.perplexity import perplexity, token_losses
from lightstride.models import sliced_logits as logits
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.passes import Spill
from lightstride.smash.hub import SmashModel

WINDOWS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def plain_losses(model: PreTrainedModel, windows_NL: Tensor) -> Tensor:
    """The plain twin: all logits at once."""
    logits_NLV = model(windows_NL).logits[:, :-1].float()
    return cross_entropy(logits_NLV.transpose(1, 2), windows_NL[:, 1:], reduction="none")


MODELS = {**TINY, "smashed": lambda: SmashModel.graft(tiny_llama())}


@pytest.mark.parametrize("family", MODELS)
def test_sliced_is_at_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[family]()
    for positions in (1, 7, 1000):
        bytes_per_position = 4 * 260 * 2
        monkeypatch.setitem(logits.SLICE_BYTES, "cpu", positions * bytes_per_position)
        sliced = token_losses(model, WINDOWS, batch_size=2)
        torch.testing.assert_close(sliced, plain_losses(model, WINDOWS))


def test_the_family_s_own_capping_of_logits_counts() -> None:
    model = TINY["gemma3"]()
    before = token_losses(model, WINDOWS)
    model.config.final_logit_softcapping = 0.5
    capped = token_losses(model, WINDOWS)
    torch.testing.assert_close(capped, plain_losses(model, WINDOWS))
    assert not torch.allclose(before, capped, atol=1e-3)


def test_perplexity_is_over_every_predicted_token() -> None:
    model = tiny_llama()
    measured = perplexity(model, WINDOWS, batch_size=2)
    losses = plain_losses(model, WINDOWS)
    assert measured.num_tokens == 3 * 39 == losses.numel()
    assert measured.nll == pytest.approx(float(losses.mean()), rel=1e-6)
    assert measured.value == pytest.approx(exp(measured.nll))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert perplexity(model, WINDOWS).value == pytest.approx(260, rel=1e-5)


def test_strides_give_each_token_its_context(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("abcdefghij" * 10)
    windows = strided_windows(str(tmp_path / "x.txt"), byte_tokenizer(), window=32, stride=12)
    model = tiny_llama()
    measured = perplexity(model, windows, batch_size=4)
    losses = [plain_losses(model, windows.tokens_NL[:1]).flatten()]
    losses += [plain_losses(model, row[None])[0, -12:] for row in windows.tokens_NL[1:]]
    assert measured.num_tokens == 31 + 12 * (len(windows.tokens_NL) - 1)
    assert measured.nll == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_llama()
    before = model(WINDOWS).logits
    with pytest.raises(IndexError):
        token_losses(model, WINDOWS + 1000)
    token_losses(model, WINDOWS)
    assert "forward" not in vars(model.get_decoder())
    assert torch.equal(model(WINDOWS).logits, before)


def test_logits_that_are_not_numbers_have_no_perplexity() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        perplexity(model, torch.arange(8)[None])


def test_block_by_block_as_whole(tmp_path: Path) -> None:
    for name, build in TINY.items():
        model = build()
        model.save_pretrained(tmp_path / name, max_shard_size="30KB")
        windows = torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(0))
        expected = perplexity(model, windows, batch_size=2)
        source = open_streamed(str(tmp_path / name), dtype=torch.float32)
        found = perplexity(source, windows, batch_size=2)
        assert found.value == pytest.approx(expected.value, rel=1e-6)
        assert perplexity(source, windows, batch_size=2, spill=Spill(tmp_path / "spill")) == found
        assert not (tmp_path / "spill").exists()
