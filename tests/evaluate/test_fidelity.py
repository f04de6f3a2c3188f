"""Fidelity against whole logits, and a model against itself."""

from pathlib import Path

import pytest
import torch

from helpers.divergence import plain_divergence
from helpers.toys import tiny_llama
from lightstride.errors import ModelError
from lightstride.evaluate.fidelity import fidelity
from lightstride.models import sliced_logits
from lightstride.models.opening.source import Resident
from lightstride.models.passes import Spill

WINDOWS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(3))


def test_slices_give_what_whole_logits_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sliced_logits.SLICE_BYTES, "cpu", 4 * 260 * 5)
    monkeypatch.setattr(sliced_logits, "CACHED_BYTES", 4 * 260 * 2)
    dense, other = tiny_llama(seed=0), tiny_llama(seed=1)
    found = fidelity(other, dense, WINDOWS)
    with torch.no_grad():
        theirs, ours = (model(WINDOWS).logits.flatten(0, 1) for model in (dense, other))
    plain_T = plain_divergence(theirs, ours)
    assert found.mean == pytest.approx(float(plain_T.mean()), rel=1e-4)
    assert found.p99 == pytest.approx(float(plain_T.quantile(0.99)), rel=1e-4)
    assert found.same_likeliest == pytest.approx(
        float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
    )
    assert found.num_tokens == WINDOWS.numel()


@pytest.mark.parametrize("spilled", [False, True])
def test_block_by_block_as_in_memory(spilled: bool, tmp_path: Path) -> None:
    dense, other = tiny_llama(seed=0), tiny_llama(seed=1)
    whole = fidelity(other, dense, WINDOWS)
    spills = (Spill(tmp_path / "a"), Spill(tmp_path / "b")) if spilled else (None, None)
    assert fidelity(Resident(other), Resident(dense), WINDOWS, spills) == whole
    assert fidelity(Resident(other), dense, WINDOWS) == whole
    assert not list(tmp_path.iterdir())


def test_a_model_is_faithful_to_itself() -> None:
    found = fidelity(tiny_llama(), tiny_llama(), WINDOWS)
    assert found.mean == pytest.approx(0, abs=1e-6)
    assert found.same_likeliest == 1


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be compared"):
        fidelity(tiny_llama(vocab_size=264), tiny_llama(), WINDOWS)
