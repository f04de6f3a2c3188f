"""`lightstride export`: a folder goes in, a file that the engine answers from comes out."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("xllamacpp")
from gguf import GGUFReader

from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.engine import Engine
from helpers.toys import TINY, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.cli import main
from lightstride.commands import export as run
from lightstride.commands.export import export, folder_end_tokens
from lightstride.config import ExportConfig
from lightstride.errors import ExportError, ModelError, OutputError
from lightstride.export.gguf.weights import FolderWeights
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.shapes import FFNKept, Site
from lightstride.prune.cut.materialize import DenseSites, materialize
from lightstride.prune.cut.refit import CutSite

PROMPT = list(range(40, 60))


def narrowed(model: PreTrainedModel, *widths: int) -> PreTrainedModel:
    """The model with only the first channels of each block's FFN."""
    adapter = adapter_for(model.config)
    dense = DenseSites.of(model, adapter)
    levels = {}
    for block, width in enumerate(widths):
        site = Site(block, "ffn")
        weight = dense.weights[site][OUTPUT_NAME["ffn"]][:, :width]
        levels[site] = CutSite(FFNKept(tuple(range(width))), weight, 0.0)
    return materialize(model, adapter, levels)


def saved(model: PreTrainedModel, folder: Path, **options) -> Path:
    save_checkpoint(model, ascii_tokenizer(), folder / "model", record={"made": "here"}, **options)
    return folder / "model"


def first_log_probabilities(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1], -1)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("mistral", {"sliding_window": 64}), ("qwen2", {}), ("qwen3", {})],
)
def test_an_uneven_checkpoint_answers_alike(
    family: str, settings: dict, tmp_path: Path, capsys
) -> None:
    model = narrowed(TINY[family](**settings), 24, 40)
    folder = saved(model, tmp_path)
    output = tmp_path / "model.gguf"
    assert main(["export", str(folder), "-o", str(output), "--dtype", "f32"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: ")
    found = torch.tensor(Engine(output).log_probabilities(PROMPT, 260))
    expected = first_log_probabilities(model)
    assert (found - expected).abs().max() < 0.05
    assert found.argmax() == expected.argmax()


def test_the_document_says_what_was_written(tmp_path: Path, capsys) -> None:
    folder = saved(narrowed(tiny_llama(), 24, 40), tmp_path)
    output = tmp_path / "model.gguf"
    arguments = ["export", str(folder), "-o", str(output), "--dtype", "q8_0", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["architecture"] == "deci"
    assert document["dtype"] == "q8_0"
    assert document["bytes"] == output.stat().st_size
    assert document["fallbacks"] == ["blk.0.ffn_down.weight: f16", "blk.1.ffn_down.weight: f16"]
    assert "blk.1.ffn_down.weight: f16" in captured.err


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    folder = saved(tiny_llama(), tmp_path)
    loads = []

    def failing(self: FolderWeights, name: str) -> torch.Tensor:
        loads.append(name)
        if len(loads) == 5:
            raise OSError(28, "No space left on device")
        return original(self, name)

    original = FolderWeights.load
    monkeypatch.setattr(FolderWeights, "load", failing)
    with pytest.raises(OutputError, match="no space left on the disk"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_are_read_one_at_a_time(tmp_path: Path, monkeypatch) -> None:
    folder = saved(tiny_llama(), tmp_path)
    given: list[weakref.ref] = []

    class Watched(FolderWeights):
        def load(self, name: str) -> torch.Tensor:
            tensor = super().load(name)
            assert sum(reference() is not None for reference in given) <= 1
            given.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(run, "FolderWeights", Watched)
    export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))
    assert len(given) == len(FolderWeights(folder).shapes)


def test_sharded_checkpoints_are_read(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    whole, parts = tmp_path / "a", tmp_path / "b"
    whole.mkdir()
    parts.mkdir()
    files = []
    for place, size in ((whole, 5 * 10**9), (parts, 10**4)):
        folder = saved(model, place, shard_bytes=size)
        files.append(place / "model.gguf")
        export(ExportConfig(model=str(folder), output=str(files[-1]), dtype="f16"))
    assert len(list((parts / "model").glob("*.safetensors"))) > 2
    one, other = (
        {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}
        for file in files
    )
    assert one == other


def test_end_tokens_come_from_the_generation_settings(tmp_path: Path) -> None:
    model = tiny_llama()
    model.generation_config.eos_token_id = [257, 10]
    folder = saved(model, tmp_path)
    assert folder_end_tokens(folder, model.config) == (257, 10)
    (folder / "generation_config.json").unlink()
    assert folder_end_tokens(folder, model.config) == (257,)


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path)
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "there.gguf")))
    with pytest.raises(OutputError, match="is no folder"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "nowhere" / "x.gguf")))
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_refused_model_leaves_nothing(tmp_path: Path) -> None:
    folder = saved(narrowed(TINY["gemma3"](), 24, 40, 40), tmp_path)
    with pytest.raises(ExportError, match="same widths"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = saved(tiny_llama(), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))


def test_nan_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.get_input_embeddings().weight.data[3, 3] = float("nan")
    folder = saved(model, tmp_path)
    with pytest.raises(ExportError, match="not all numbers are finite"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))


def test_without_the_package_the_command_says_so(tmp_path: Path, monkeypatch) -> None:
    folder = saved(tiny_llama(), tmp_path)
    monkeypatch.setattr(run, "HAS_GGUF", False)
    with pytest.raises(ExportError, match="pip install gguf"):
        export(ExportConfig(model=str(folder), output=str(tmp_path / "model.gguf")))


PROMPTS = (
    "The capital of France is",
    "In 1969, two men",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees",
)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.05), ("bf16", 0.2), ("q8_0", 1.0)])
def test_the_real_model_answers_alike(dtype: str, tolerance: float, tmp_path: Path) -> None:
    """Below f16 llama.cpp rounds activations too, which this small model feels."""
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    output = tmp_path / "model.gguf"
    export(ExportConfig(model="smollm2-135m", output=str(output), dtype=dtype))
    engine = Engine(output)
    for text in PROMPTS:
        tokens = tokenizer(text)["input_ids"]
        assert engine.tokenize(text, add_special=True) == tokens
        for _ in range(3):
            with torch.no_grad():
                expected = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], -1)
            found = torch.tensor(engine.log_probabilities(tokens, model.config.vocab_size))
            likely = expected.topk(20).indices
            assert expected.max() - expected[found.argmax()] < tolerance
            assert (found - expected)[likely].abs().max() < tolerance
            tokens = [*tokens, int(expected.argmax())]
