"""The head of a .gguf file: counts and lengths that the file cannot hold are refused at once."""

import struct
from pathlib import Path

import pytest

from helpers.toys import tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride.errors import ModelError
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.gguf_header import check_gguf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = tiny_llama()
    geometry = adapter_for(model.config).geometry(model.config)
    write_gguf(
        ModelWeights(model),
        model.config,
        geometry,
        trained_tokenizer(),
        tmp_path / "a.gguf",
        dtype="f32",
        name="toy",
    )
    return tmp_path / "a.gguf"


def at(data: bytes, key: str) -> int:
    """Where the value of a key stands, after its type."""
    return data.index(key.encode()) + len(key) + 4


def put(data: bytes, place: int, code: str, value: int) -> bytes:
    packed = struct.pack(f"<{code}", value)
    return data[:place] + packed + data[place + len(packed) :]


def test_a_sound_file_passes(path: Path) -> None:
    check_gguf(path)


CHANGES = {
    "another format": (lambda d: b"GGML" + d[4:], "not a .gguf file"),
    "version 1": (lambda d: put(d, 4, "I", 1), "version 1"),
    "billions of tensors": (lambda d: put(d, 8, "Q", 2**60), "truncated|damaged"),
    "billions of keys": (lambda d: put(d, 16, "Q", 2**60), "truncated|damaged"),
    "billions of blocks": (
        lambda d: put(d, at(d, "llama.block_count"), "I", 2**31),
        r"block_count is 2,147,483,648; at most 10,000",
    ),
    "more blocks than weights": (
        lambda d: put(d, at(d, "llama.block_count"), "I", 99),
        "99 blocks; it has weights of 2",
    ),
    "no block count": (lambda d: d.replace(b"block_count", b"block_counx"), "not say its block_c"),
    "billions of merges": (
        lambda d: put(d, at(d, "tokenizer.ggml.merges") + 4, "Q", 2**40),
        "merges has 1,099,511,627,776 entries",
    ),
    "an unknown type": (
        lambda d: put(d, at(d, "llama.block_count") - 4, "I", 77),
        "unknown type 77",
    ),
    "cut short": (lambda d: d[:200], "truncated"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_is_refused(path: Path, name: str) -> None:
    change, message = CHANGES[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        check_gguf(path)
