"""Logits of texts, slice by slice, of a model in memory and of one read block by block."""

import pytest
import torch

from helpers.toys import TINY
from lightstride.evaluate.text_logits import text_logits
from lightstride.models import sliced_logits
from lightstride.models.opening.source import Resident

BATCHES = torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(0)).split(2)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_slices_are_the_whole(family: str, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sliced_logits.SLICE_BYTES, "cpu", positions * 4 * 260 * 2)
    model = TINY[family]()
    for each in (model, Resident(model)):
        with torch.inference_mode(), text_logits(each, BATCHES) as logits_of:
            for number, windows_BL in enumerate(BATCHES):
                found, starts = [], []
                for start, logits_BPV in logits_of(number):
                    starts.append(start)
                    found.append(logits_BPV)
                whole_BLV = model(windows_BL, use_cache=False).logits
                torch.testing.assert_close(torch.cat(found, 1), whole_BLV, rtol=1e-4, atol=1e-5)
                assert starts[0] == 0
                assert starts == sorted(set(starts))
