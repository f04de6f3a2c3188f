"""Perplexity of a model that is too large for `--memory`, and what is refused then."""

from pathlib import Path

import pytest

from helpers.prune_runs import make_inputs
from helpers.toys import tiny_llama
from lightstride.commands.evaluate import evaluate
from lightstride.commands.evaluating.streamed import too_large
from lightstride.config import EvaluateConfig
from lightstride.errors import ConfigError
from lightstride.prune.footprint import PROGRAM_BYTES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy of many blocks in several files, and a text; logits take no memory worth counting."""
    make_inputs(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    tiny_llama(num_layers=12).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    monkeypatch.setattr("lightstride.commands.evaluating.streamed.LOGIT_BYTES", 0)
    return tmp_path


def config(folder: Path, **changes: object) -> EvaluateConfig:
    values: dict[str, object] = {
        "model": str(folder / "model"),
        "perplexity": str(folder / "text.jsonl"),
        "window": 32,
        "dtype": "float32",
        "device": "cpu",
        "output": str(folder / "evaluation"),
    }
    return EvaluateConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [70_000, 300_000])
def test_block_by_block_as_whole(folder: Path, more: int) -> None:
    whole = evaluate(config(folder))["numbers"]["model"]  # type: ignore[index]
    small = config(folder, memory=f"{PROGRAM_BYTES + more}B")
    assert too_large(small.model, small) is not None
    streamed = evaluate(small)["numbers"]["model"]  # type: ignore[index]
    for key in ("parameters", "weight_bytes", "source"):
        assert streamed[key] == whole[key]
    assert streamed["perplexity"]["num_tokens"] == whole["perplexity"]["num_tokens"]
    assert streamed["perplexity"]["value"] == pytest.approx(whole["perplexity"]["value"], rel=1e-6)
    assert not (folder / "evaluation.activations").exists()


def test_what_fits_is_opened_whole(folder: Path) -> None:
    roomy = config(folder, memory="8GiB")
    assert too_large(roomy.model, roomy) is None


def test_too_little_and_tasks_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the least that works is [\d.]+GiB"):
        evaluate(config(folder, memory="1MB"))
    both = {"fidelity": str(folder / "text.jsonl"), "against": str(folder / "model")}
    with pytest.raises(ConfigError, match="only --perplexity reads a model block by block"):
        evaluate(config(folder, memory="1MB", **both))
