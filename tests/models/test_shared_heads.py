"""Masked attention on a CPU reads each KV head once."""

import os
from pathlib import Path

import pytest
import torch

from helpers.agree import assert_close_logits
from helpers.toys import tiny_llama
from lightstride.models.opening.load import load_model, share_heads

NAME = "TRANSFORMERS_SDPA_FORCE_GQA"


def test_it_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "0")
    tiny_llama().save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :7] = mask[2, :12] = 0
    with torch.inference_mode():
        copied = model(tokens, attention_mask=mask).logits
        monkeypatch.setenv(NAME, "1")
        shared = model(tokens, attention_mask=mask).logits
    assert_close_logits(shared[mask.bool()], copied[mask.bool()])


def test_cuda_keeps_its_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")  # so that it is put back after the test
    monkeypatch.delenv(NAME)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    share_heads()
    assert NAME not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    share_heads()
    assert os.environ[NAME] == "1"
