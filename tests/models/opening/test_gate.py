"""The gate of a model folder: what is refused before transformers reads it."""

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.gate import check_folder, read_header, weight_files
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.skeleton import one_block
from lightstride.models.rebuild import block_shapes
from lightstride.models.shapes import FFNShape, Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "model", shard_bytes=40_000)
    return tmp_path / "model"


def put(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **values}))


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "text for a number": ({"hidden_size": "x"}, "Expected `int"),
    "a size of billions": ({"vocab_size": 2**40}, "vocab_size"),
    "layers of billions": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "more layers than weights": ({"num_hidden_layers": 99}, "asks for 99 layers; .* weights of 2"),
    "a negative width": ({"intermediate_size": -3}, "intermediate_size"),
    "an unknown dtype": ({"dtype": "os.system"}, "dtype is 'os.system'"),
    "rope of the wrong type": ({"rope_parameters": [1]}, "rope_parameters"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_out_of_its_types_is_refused(folder: Path, name: str) -> None:
    values, message = CONFIGS[name]
    put(folder, "config.json", **values)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_layers_of_their_own_widths_are_counted(tmp_path: Path) -> None:
    """Of more than ten layers transformers pads the numbers."""
    model = thin_llama()
    save_checkpoint(model, byte_tokenizer(), tmp_path / "thin")
    own = json.loads((tmp_path / "thin" / "config.json").read_text())["per_layer_config"]
    assert min(own) == "00"
    loaded = load_model(str(tmp_path / "thin"))
    assert block_shapes(loaded) == block_shapes(model)
    first = one_block(loaded.config, torch.float32, "cpu")
    assert block_shapes(first)[Site(0, "ffn")] == FFNShape(3)


def thin_llama() -> PreTrainedModel:
    """A Llama of twelve layers that are much narrower than its config says of all."""
    model = tiny_llama(num_layers=12, num_channels=256)
    adapter = adapter_for(model.config)
    for index, block in enumerate(adapter.blocks(model)):
        ffn, kept = adapter.read(block, "ffn"), 3 + index % 2
        fewer = {"gate": ffn["gate"][:kept], "up": ffn["up"][:kept], "down": ffn["down"][:, :kept]}
        adapter.write(block, "ffn", fewer, FFNShape(kept))
    return model


def test_deep_nesting_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ' + "[" * 5000 + "]" * 5000 + "}")
    with pytest.raises(ModelError, match="nested deeper"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin", "gone.safetensors"],
)
def test_an_index_names_files_beside_it(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"][next(iter(document["weight_map"]))] = name
    index.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"beside it|is missing"):
        load_model(str(folder))


class Canary:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickles_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle.*convert it"):
        load_model(str(folder))
    assert not (tmp_path / "canary").exists()


CODE = "from pathlib import Path\nPath({canary!r}).write_text('ran')\nclass Config: pass\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("typed", ["", "y\ny\ny\n"])
def test_code_of_a_folder_does_not_run_unasked(
    folder: Path, tmp_path: Path, name: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    put(
        folder, name, auto_map={"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Config", None]}
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    for call in (load_model, load_tokenizer, open_decoder):
        with pytest.raises(ModelError, match=r"evil\.py.*--trust-remote-code"):
            call(str(folder))
    assert cli.main(["export", str(folder), "-o", str(tmp_path / "x.gguf"), "--to", "gguf"]) == 2
    assert not canary.exists()


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    (folder / "added_tokens.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ModelError, match="leaves its folder"):
        check_folder(folder, trust_remote_code=False)


def test_links_within_the_hub_cache_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    target = tmp_path / "snapshots" / "abc"
    target.mkdir()
    for file in folder.iterdir():
        file.rename(tmp_path / "blobs" / file.name)
        (target / file.name).symlink_to(Path("../../blobs") / file.name)
    load_model(str(target))


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a length beyond the file": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "no JSON": lambda data: data[:8] + b"\xff" * 20 + data[28:],
    "too short": lambda data: data[:-3],
    "an unknown type": lambda data: data.replace(b'"F32"', b'"F99"', 1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_refused(folder: Path, name: str) -> None:
    path = weight_files(folder)[0]
    path.write_bytes(HEADERS[name](path.read_bytes()))
    with pytest.raises(ModelError, match=path.name):
        read_header(path)
