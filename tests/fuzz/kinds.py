"""The kinds of files that a user may point us at, each with commands that read it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st

from fuzz.damage import (
    Damage,
    byte_damage,
    gguf_damage,
    json_damage,
    safetensors_damage,
    template_damage,
)
from helpers.cuts import cut_all
from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer, tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride.checkpoint import save_checkpoint
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for

GENERATE = ("generate", "{source}", "-p", "ab", "--max-new-tokens", "2", "--json")
EXPORT = ("export", "{source}", "-o", "{out}.gguf", "--to", "gguf", "--json")
PERPLEXITY = (
    *("evaluate", "{source}", "--perplexity", "{texts}", "--window", "16"),
    *("-o", "{out}", "--json"),
)


@dataclass(frozen=True, repr=False)
class Kind:
    """One file of one source, how it is damaged, and which commands then read it."""

    build: Callable[[Path], Path]
    """Makes the source in a folder; what it is called."""
    file: str
    damage: st.SearchStrategy[Damage]
    commands: tuple[tuple[str, ...], ...] = (GENERATE,)
    weight: float = 1.0
    """How many of the inputs are of this kind, relative to the others."""

    def __repr__(self) -> str:
        return self.file or "the file itself"


def plain(folder: Path) -> Path:
    """A toy checkpoint with everything a folder may hold."""
    model = tiny_llama()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )
    record = {"kind": "prune", "data": {"calibration": {"documents": ["a"]}}}
    save_checkpoint(model, tokenizer, folder / "plain", record=record)
    return folder / "plain"


def sharded(folder: Path) -> Path:
    """The same in several files with an index."""
    save_checkpoint(tiny_llama(), byte_tokenizer(), folder / "sharded", shard_bytes=40_000)
    assert (folder / "sharded" / "model.safetensors.index.json").exists()
    return folder / "sharded"


def layered(folder: Path) -> Path:
    """Blocks of different widths."""
    model = tiny_llama()
    cut_all(model)
    save_checkpoint(model, byte_tokenizer(), folder / "layered")
    return folder / "layered"


def smashed(folder: Path) -> Path:
    """Grafts and their base."""
    base = tiny_llama()
    save_checkpoint(base, byte_tokenizer(), folder / "base")
    model = toy(base)
    model.config.base = "../base"
    save_checkpoint(model, byte_tokenizer(), folder / "smashed")
    return folder / "smashed"


def gguf(folder: Path) -> Path:
    """A GGUF file."""
    model, path = tiny_llama(), folder / "a.gguf"
    geometry = adapter_for(model.config).geometry(model.config)
    weights, words = ModelWeights(model), trained_tokenizer()
    write_gguf(weights, model.config, geometry, words, path, dtype="f32", name="toy")
    return path


KINDS: Mapping[str, Kind] = {
    "config": Kind(plain, "config.json", json_damage, (GENERATE, EXPORT), 2.0),
    "layered": Kind(layered, "config.json", json_damage, (GENERATE,)),
    "generation": Kind(plain, "generation_config.json", json_damage),
    "tokenizer": Kind(plain, "tokenizer.json", json_damage, (GENERATE, EXPORT)),
    "tokenizer_config": Kind(plain, "tokenizer_config.json", json_damage),
    "template": Kind(plain, "chat_template.jinja", template_damage),
    "safetensors": Kind(plain, "model.safetensors", safetensors_damage, (GENERATE, EXPORT), 2.0),
    "index": Kind(sharded, "model.safetensors.index.json", json_damage, (GENERATE, EXPORT)),
    "record": Kind(plain, "lightstride.json", json_damage, (PERPLEXITY,)),
    "smash": Kind(smashed, "config.json", json_damage, (GENERATE,), 2.0),
    "grafts": Kind(smashed, "model.safetensors", safetensors_damage),
    "gguf": Kind(gguf, "", gguf_damage, (GENERATE,), 2.0),
    "texts": Kind(plain, "../texts.jsonl", json_damage, (PERPLEXITY,)),
    "text": Kind(plain, "../texts.txt", byte_damage, (PERPLEXITY,), 0.5),
}
TEXTS = {"text": "texts.txt"}


def write_texts(folder: Path) -> None:
    """What commands read beside the source."""
    torch.manual_seed(0)
    lines = [json.dumps({"text": f"line {i} of a text that is long enough " * 3}) for i in range(9)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "texts.txt").write_text("a text without any end, or nearly. " * 40)
