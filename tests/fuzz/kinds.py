"""The kinds of files that a user may point us at, each with commands that read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fuzz import sources
from fuzz.commands import EACH_FAMILY, EACH_TOKENIZER
from fuzz.damage import Damage
from fuzz.strategies import (
    byte_damage,
    gguf_damage,
    json_damage,
    line_damage,
    safetensors_damage,
    template_damage,
    tokenizer_damage,
)


@dataclass(frozen=True)
class Kind:
    """Files of one source, how they are damaged, and which commands then read them."""

    build: Callable[[Path], None]
    """Fills a folder."""
    files: tuple[str, ...]
    """Patterns of the files that are damaged, one at a time."""
    damage: st.SearchStrategy[Damage]
    commands: tuple[str, ...]
    weight: float = 1.0
    """How many of the inputs are of this kind, relative to the others."""
    is_written: bool = False
    """Whether the commands write into the folder, beside their outputs."""


OPENING = ("generate", "generate", "generate", "export", "doctor", "serve", "forecast")
KINDS: Mapping[str, Kind] = {
    "config": Kind(sources.plain, ("model/config.json",), json_damage, (*OPENING, "prune"), 3.0),
    "config of families": Kind(sources.families, ("*/config.json",), json_damage, EACH_FAMILY, 2.0),
    "layered": Kind(
        sources.layered,
        ("model/config.json",),
        json_damage,
        ("generate", "export", "doctor"),
        2.0,
    ),
    "generation": Kind(
        sources.plain, ("model/generation_config.json",), json_damage, ("generate", "export")
    ),
    "tokenizer": Kind(
        sources.plain, ("model/tokenizer.json",), tokenizer_damage, ("generate", "export"), 2.0
    ),
    "tokenizers": Kind(
        sources.tokenizers, ("*/tokenizer*.json",), tokenizer_damage, EACH_TOKENIZER, 3.0
    ),
    "tokenizer config": Kind(
        sources.plain,
        ("model/tokenizer_config.json",),
        json_damage,
        ("generate", "generate", "serve", "export"),
        2.0,
    ),
    "template": Kind(
        sources.plain, ("model/chat_template.jinja",), template_damage, ("generate",), 1.5
    ),
    "safetensors": Kind(
        sources.plain,
        ("model/model.safetensors",),
        safetensors_damage,
        ("generate", "generate", "export", "doctor", "perplexity"),
        3.0,
    ),
    "experts": Kind(
        sources.experts,
        ("model/config.json", "cut/config.json"),
        json_damage,
        ("generate", "generate cut"),
    ),
    "index": Kind(
        sources.sharded,
        ("model/*.index.json", "model/*.index.json", "model/*.safetensors"),
        json_damage,
        ("generate", "export"),
        1.5,
    ),
    "record": Kind(sources.plain, ("model/lightstride.json",), json_damage, ("perplexity",), 0.5),
    "grafts config": Kind(
        sources.smashed,
        ("model/config.json",),
        json_damage,
        ("generate", "generate", "doctor", "serve"),
        2.0,
    ),
    "grafts": Kind(
        sources.smashed, ("model/model.safetensors",), safetensors_damage, ("generate",), 1.5
    ),
    "memory plan": Kind(sources.with_memory, ("model/memory.json",), json_damage, ("generate",)),
    "headed": Kind(
        sources.headed,
        ("model/config.json", "model/head/config.json"),
        json_damage,
        ("generate", "generate", "doctor"),
        1.5,
    ),
    "head": Kind(
        sources.heads,
        ("head/config.json",),
        json_damage,
        ("take head",),
        0.6,
    ),
    "head of speculators": Kind(
        sources.speculators, ("head/config.json",), json_damage, ("take head",), 0.6
    ),
    "head weights": Kind(
        sources.heads, ("head/model.safetensors",), safetensors_damage, ("take head",), 0.6
    ),
    "gguf": Kind(sources.gguf, ("a.gguf",), gguf_damage, ("generate file",), 3.0),
    "cache": Kind(
        sources.cached,
        ("cache/converted/*/*.json",),
        json_damage,
        ("cache", "list cache", "generate file"),
        0.5,
        is_written=True,
    ),
    "texts": Kind(sources.plain, ("texts.jsonl",), line_damage, ("perplexity", "fidelity"), 0.5),
    "parquet": Kind(sources.plain, ("texts.parquet",), byte_damage, ("parquet",), 0.5),
    "text": Kind(sources.plain, ("texts.txt",), byte_damage, ("text",), 0.3),
    "packed": Kind(sources.plain, ("texts.jsonl.gz",), byte_damage, ("packed",), 0.3),
    "prompts": Kind(sources.plain, ("prompts.jsonl",), line_damage, ("loops",), 0.5),
    "tasks": Kind(
        sources.plain,
        ("arc_easy.jsonl", "gsm8k_*.jsonl"),
        line_damage,
        ("tasks", "answers of tasks"),
        0.25,
    ),
    "results": Kind(sources.results, ("runs/**/result.json",), json_damage, ("report",), 0.35),
    "search": Kind(sources.results, ("runs/**/search.jsonl",), line_damage, ("report",), 0.2),
    "prune work": Kind(
        sources.prune_work,
        ("work/**/*.json", "work/*.jsonl"),
        json_damage,
        ("prune on",),
        0.6,
        is_written=True,
    ),
    "supernet": Kind(
        sources.supernet_work,
        ("work/**/*.safetensors", "work/**/*.json"),
        safetensors_damage,
        ("prune on",),
        0.5,
        is_written=True,
    ),
    "smash work": Kind(
        sources.smash_work,
        ("work/**/*.json", "work/**/*.jsonl"),
        json_damage,
        ("smash on",),
        0.5,
        is_written=True,
    ),
    "smash weights": Kind(
        sources.smash_work,
        ("work/**/*.safetensors",),
        safetensors_damage,
        ("smash on",),
        0.5,
        is_written=True,
    ),
    "recover work": Kind(
        sources.recover_work,
        ("work/**/*",),
        safetensors_damage,
        ("recover on",),
        0.5,
        is_written=True,
    ),
    "recover inputs": Kind(
        sources.recover_work,
        ("model/lightstride.json", "model/config.json", "texts.jsonl"),
        json_damage,
        ("recover",),
        0.5,
        is_written=True,
    ),
}
